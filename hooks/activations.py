"""x and y of images: what the MLPs of a frozen ViT read and put out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT

IMAGES_PER_PASS = 128
"""Number of images that go through the ViT together where activations are captured."""


@dataclass(frozen=True)
class Activations:
    """MLP inputs x and outputs y of a batch of images, on the clean (teacher) trajectory."""

    x: Float[Tensor, "layer image token d_model"]
    y: Float[Tensor, "layer image token d_model"]


@torch.no_grad()
def capture(vit: HookedViT, images: Float[Tensor, "batch 3 height width"]) -> Activations:
    """x and y of every layer and token row, from a clean pass in which no hook fires.

    Raises:
        InputError: an activation is NaN or infinite.
    """
    names = [point.format(l=l) for l in range(vit.cfg.n_layers) for point in (HOOK_IN, HOOK_OUT)]
    cache = vit.clean_cache(images, names)
    for name in names:
        if not cache[name].sum().isfinite():
            raise InputError(f"{name} holds NaN or infinite values; expected finite activations.")
    x, y = (
        torch.stack([cache[point.format(l=l)] for l in range(vit.cfg.n_layers)])
        for point in (HOOK_IN, HOOK_OUT)
    )
    return Activations(x, y)
