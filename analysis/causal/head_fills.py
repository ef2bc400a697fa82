"""What is written over the outputs of attention heads: zeros, means, or another image's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from vit_clt.analysis.stats.donors import donor_cycle
from vit_clt.analysis.stats.means import PositionMean
from vit_clt.choices import Fill, TokenKind, check_choice
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.hooks.passes.heads import HeadPass, HeadValues
from vit_clt.progress import Progress


class HeadFills:
    """The values that take the place of every head's output, for one batch after another.

    Args:
        vit: the model, with no hooks attached.
        data: the images.
        fill: "mean" over the images at the same position, "resample" (the same rows of one other
            image, the same for all heads), or "zero".
        ablated: token rows that are overwritten.
        seed: seed of the donors of a resample.
        progress: show a progress bar.

    Raises:
        InputError: an unknown fill, a model whose heads cannot be read, or one image and a
            resample.
    """

    def __init__(
        self,
        vit: HookedViT,
        data: ImageData,
        fill: Fill,
        ablated: TokenKind = "all",
        seed: int = 0,
        progress: bool = False,
    ):
        check_choice("fill", fill, get_args(Fill))
        self._vit, self._data, self._ablated = vit, data, ablated
        self._donors = donor_cycle(len(data), seed) if fill == "resample" else []
        self._means: HeadValues | None = None
        if fill == "mean":
            layers = range(vit.cfg.n_layers)
            sums = [PositionMean() for _ in layers]
            n_batches = -(-len(data) // data.batch_size)
            for images, _ in Progress(data, "means", n_batches, disable=not progress):
                clean = HeadPass(vit, images.to(vit.device), ablated=ablated)
                for l in layers:
                    sums[l].add(clean.outputs(l).transpose(0, 1))
            self._means = {l: sums[l].mean() for l in layers}

    def of(self, batch: Sequence[int]) -> HeadValues | None:
        """By layer, the values of the images with these numbers; None for zeros."""
        if not self._donors:
            return self._means
        images = self._data.batch([self._donors[i] for i in batch])[0].to(self._vit.device)
        donors = HeadPass(self._vit, images, ablated=self._ablated)
        return {l: donors.outputs(l) for l in range(self._vit.cfg.n_layers)}
