"""The hidden units of a ViT's MLPs, which have no hook point: what the last linear layer reads."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import HookedBlock


def output_layer(block: HookedBlock) -> nn.Linear:
    """The last linear layer of a block's MLP, which puts out y_l.

    Raises:
        InputError: the MLP does not end in a linear layer that puts out d_model numbers.
    """
    layers = [part for part in block.mlp.modules() if isinstance(part, nn.Linear)]
    # what it puts out is as wide as what the first one reads, x_l
    if not layers or layers[-1].out_features != layers[0].in_features:
        raise InputError(
            "model",
            f"has MLPs of class {type(block.mlp).__name__}, which do not end in a linear layer; "
            "expected ones whose hidden units can be read.",
        )
    return layers[-1]


@torch.no_grad()
def hidden_units(
    block: HookedBlock, x: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row d_mlp"]:
    """The hidden units of a block's MLP after their activation function, for inputs x_l.

    They are what the MLP's last linear layer reads, so that y_l is this layer of them; of a gated
    MLP they are the products of gate and value. The MLP works row by row and is run once.

    Args:
        block: a block of a `HookedViT`.
        x: inputs of the MLP.

    Raises:
        InputError: as of `output_layer`.
    """
    read: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        read.append(inputs[0])

    handle = output_layer(block).register_forward_pre_hook(keep)
    try:
        block.mlp(x)
    finally:
        handle.remove()
    return read[0]
