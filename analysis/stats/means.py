"""Means of a ViT's own activations over images, per token position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT


@torch.no_grad()
def position_means(
    vit: HookedViT, data: ImageData, names: Sequence[str], *, title: str, progress: bool = False
) -> dict[str, Float[Tensor, "token d_model"]]:
    """Mean of each activation over the images, at each token position (summed in float64).

    Args:
        vit: the model; hooks attached to it do not fire.
        data: the images.
        names: hook points, each "batch token d_model".
        title: of the progress bar.
        progress: show it.

    Raises:
        InputError: an unknown name, or an activation that is NaN or infinite.
    """
    device = next(vit.parameters()).device
    totals: dict[str, Tensor] = {}
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in tqdm(data, title, n_batches, disable=not progress):
        for name, values in vit.clean_cache(images.to(device), names).items():
            total = values.double().sum(0)
            if not total.isfinite().all():
                raise InputError(
                    f"{name} holds NaN or infinite values; expected finite activations."
                )
            totals[name] = totals[name] + total if name in totals else total
    return {name: (total / len(data)).float() for name, total in totals.items()}
