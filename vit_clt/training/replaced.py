"""Token rows of the stream in which the CLT that is being trained stands in for every MLP.

Trained on the unaltered stream alone, a CLT never sees what its own errors do to the inputs of
later layers. In the last steps of a run (`TrainConfig.stream_share`) x_l comes from the pass in
which every MLP at every row gives y + a (y^ - y), y^ of the CLT as it then is, and y_l stays the
unaltered pass's:

    loss = sum_l ||y^_l(x of the replaced pass) - y_l(unaltered)||^2

The part a of the replacement rises evenly from 0 to 1 over the first half of these steps: from one
step to the next errors would multiply, and AdamW, whose steps are as large as the gradients before
were small, would leave the place that it has reached. No gradient runs through the stream. A batch
is whole images, because a replaced pass depends on the weights of the step and cannot be shuffled
into others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.hooks.activations import Activations
from vit_clt.hooks.blocks import idle_mlps
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.points import HOOK_OUT, READ_IN, FwdHooks
from vit_clt.kernels.codes import Codes
from vit_clt.training.batches import ViTReader
from vit_clt.training.order import seeded
from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class StandIn:
    """What stands in for the MLPs."""

    clt: CrossLayerTranscoder
    """In normalised space."""
    scale_x: Float[Tensor, " layer"]
    """Scale of x that leads there."""
    scale_y: Float[Tensor, " layer"]
    """Scale of y that leads there."""
    part: float = 1.0
    """The part a of the replacement, from 0 to 1."""


class ReplacedReader(ViTReader):
    """Reads x of the replaced pass and y of the unaltered one.

    Args:
        now: what stands in for the MLPs when an image is read.
        more: arguments of `ViTReader`.
    """

    def __init__(self, now: Callable[[], StandIn], *more: Any):
        super().__init__(*more)
        self.now = now

    def activations(self, images: Float[Tensor, "batch 3 height width"]) -> Activations:
        """x as each layer reads it in the replaced pass, y as it is in the unaltered one."""
        return Activations(replaced_inputs(self.vit, self.now(), images), self.clean(images).y)


@torch.no_grad()
def replaced_inputs(
    vit: HookedViT, stand_in: StandIn, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "layer batch token d_model"]:
    """x of every layer while a CLT in normalised space stands in for every MLP at every row.

    With the whole replacement they are the x of `replace_mlps` with the same CLT in raw units,
    whose weights would have to be copied for that.
    """
    clt, scale_x, scale_y = stand_in.clt, stand_in.scale_x, stand_in.scale_y
    whole = stand_in.part == 1
    x: list[Tensor] = []
    codes: dict[int, Codes] = {}

    def read(value: Tensor, hook: HookPoint, layer: int) -> None:
        x.append(value)
        codes[layer] = clt.encode(value * scale_x[layer], layer=layer)

    def write(value: Tensor, hook: HookPoint, layer: int) -> Tensor:
        y_hat = clt.decode(codes, target=layer, x=x[layer] * scale_x[layer])
        y_hat = y_hat.to(value.dtype) / scale_y[layer]
        return y_hat if whole else torch.lerp(value, y_hat, stand_in.part)

    layers = range(vit.cfg.n_layers)
    hooks: FwdHooks = [(READ_IN.format(l=l), partial(read, layer=l)) for l in layers]
    hooks += [(HOOK_OUT.format(l=l), partial(write, layer=l)) for l in layers]
    with vit.hooks(fwd_hooks=hooks), idle_mlps(vit.blocks if whole else []):
        vit(images)
    return torch.stack(x)


def image_batches(
    seed: int, images: Sequence[int], size: int, batches: range
) -> Iterator[list[int]]:
    """The images of these batches, by row of the data set, in passes over all images.

    Every pass has an order of its own, a function of the seed, so that any batch can be found
    without those before it.

    Args:
        seed: seed of the run.
        images: the training images, by row of the data set.
        size: number of images of a batch.
        batches: numbers of the batches, from 0 for the first one that reads the replaced pass.
    """
    orders: dict[int, list[int]] = {}
    for batch in batches:
        chosen = []
        for number in range(batch * size, (batch + 1) * size):
            turn, place = divmod(number, len(images))
            if turn not in orders:
                generator = seeded(seed, "replaced", turn)
                orders = {turn: torch.randperm(len(images), generator=generator).tolist()}
            chosen.append(images[orders[turn][place]])
        yield chosen
