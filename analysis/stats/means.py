"""Means over images at each token position, of given activations or of those of a ViT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.progress import Progress


class PositionMean:
    """The mean over images at each token position, gathered batch by batch in float64."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._n_images = 0

    def add(self, values: Float[Tensor, "*axes image token d_model"]) -> None:
        """Add a batch; only its number of images may differ from other batches."""
        total = values.sum(-3, dtype=torch.float64)
        self._total = total if self._total is None else self._total.add_(total)
        self._n_images += values.shape[-3]

    def mean(self) -> Float[Tensor, "*axes token d_model"]:
        """The mean in float64; at least one batch must have been added."""
        assert self._total is not None, "no batch was added"
        return self._total / self._n_images


@torch.no_grad()
def position_means(
    vit: HookedViT, data: ImageData, names: Sequence[str], *, title: str, progress: bool = False
) -> dict[str, Float[Tensor, "token d_model"]]:
    """Mean of each activation over the images, at each token position (summed in float64).

    Args:
        vit: the model; hooks attached to it do not fire.
        data: the images.
        names: hook points, each "batch token d_model".
        title: title of the progress bar.
        progress: show a progress bar.

    Raises:
        InputError: an unknown name, or an activation that is NaN or infinite.
    """
    device = next(vit.parameters()).device
    means = {name: PositionMean() for name in names}
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in Progress(data, title, n_batches, disable=not progress):
        for name, values in vit.clean_cache(images.to(device), names).items():
            means[name].add(values)
            if not values.isfinite().all():
                raise InputError(
                    f"{name} holds NaN or infinite values; expected finite activations."
                )
    return {name: mean.mean().float() for name, mean in means.items()}
