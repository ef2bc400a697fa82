"""What silencing changes in the terms: (fill - z_s) W_dec[s->l], of all features or of one.

A fill is what silenced codes are set to: zero, each feature's mean over the images at the same
token position, or the codes of another image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.stats.donors import donor_cycle
from vit_clt.analysis.stats.means import PositionMean
from vit_clt.choices import Fill, TokenKind
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import CleanPass, HookedViT, token_rows
from vit_clt.hooks.passes.live import Change
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT
from vit_clt.kernels.codes import Codes, DenseCodes
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class Silenced:
    """What is silenced at once: all features of a source layer, or one of them."""

    layer: int
    feature: int | None = None

    @torch.no_grad()
    def written(
        self, clt: CrossLayerTranscoder, codes: Codes
    ) -> Float[Tensor, "target *image_row d_model"]:
        """What these features write at every target of their layer, z_s W_dec[s->l]."""
        s = self.layer
        targets = clt.config.targets(s)
        if self.feature is None:
            return torch.cat([clt.contributions({s: codes}, target=l) for l in targets])
        z = codes.at_features([self.feature])
        return torch.stack([z * clt.decoder(s, l)[self.feature] for l in targets])


class _CodeMean:
    """The mean of a layer's codes over images at each token position, gathered in float64."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._n_images = 0

    def add(self, codes: Codes) -> None:
        """Add the codes of a batch, "image row feature"."""
        n_images, n_rows = codes.tokens
        entries = codes.entries()
        if self._total is None:
            self._shape = (n_rows, codes.n_features)
            self._total = entries.values.new_zeros(prod(self._shape), dtype=torch.float64)
        tokens = torch.arange(n_images * n_rows, device=entries.indices.device)
        tokens = tokens.repeat_interleave(entries.offsets.diff())
        places = tokens % n_rows * codes.n_features + entries.indices
        self._total.index_add_(0, places, entries.values.double())
        self._n_images += n_images

    def mean(self) -> Float[Tensor, "row feature"]:
        """The mean in float64; at least one batch must have been added."""
        assert self._total is not None, "no batch was added"
        return self._total.view(self._shape) / self._n_images


class Changes:
    """The changes of terms that silencing makes, and means over the images.

    With fill "mean" it makes a pass over the images before; so it does for the means of y_l.

    Args:
        vit: the model.
        clt: its transcoder.
        data: the images.
        silenced: what is silenced, one after another.
        tokens: kind of rows of the means of y_l.
        ablated: kind of rows on which codes are silenced.
        fill: what silenced codes are set to.
        seed: seed of the donors.
        progress: show a progress bar.

    Raises:
        InputError: an MLP output of the model is NaN or infinite.
    """

    y_means: list[Float[Tensor, "row d_model"]]
    """Mean of y_l over the images on the rows of `tokens`, for every layer."""

    @torch.no_grad()
    def __init__(
        self,
        vit: HookedViT,
        clt: CrossLayerTranscoder,
        data: ImageData,
        silenced: Sequence[Silenced],
        *,
        tokens: TokenKind,
        ablated: TokenKind,
        fill: Fill,
        seed: int,
        progress: bool,
    ):
        self.vit, self.clt, self.data, self.silenced, self.fill = vit, clt, data, silenced, fill
        self.rows = token_rows(ablated, vit.cfg.rows)
        self._sources = sorted({each.layer for each in silenced})
        self._donors = donor_cycle(len(data), seed) if fill == "resample" else []
        scored, layers = token_rows(tokens, vit.cfg.rows), range(vit.cfg.n_layers)
        y = [PositionMean() for _ in layers]
        codes = {s: _CodeMean() for s in self._sources} if fill == "mean" else {}
        n_batches = -(-len(data) // data.batch_size)
        for images, _ in Progress(data, "means", n_batches, disable=not progress):
            clean = CleanPass(
                vit, images.to(vit.device), dict.fromkeys((HOOK_IN, HOOK_OUT), layers)
            )
            for l, mean in enumerate(y):
                value = clean.at(HOOK_OUT, l)
                if not value.isfinite().all():
                    raise InputError(
                        f"{HOOK_OUT.format(l=l)} holds NaN or infinite values; expected finite "
                        "activations."
                    )
                mean.add(value[:, scored])
            if codes:
                for s, of_layer in self._codes(clean).items():
                    codes[s].add(of_layer)
        dtype = clt.b_dec.dtype
        self.y_means = [mean.mean().to(dtype) for mean in y]
        means = {s: DenseCodes(mean.mean()[None].to(dtype)) for s, mean in codes.items()}
        self._written_means = [each.written(clt, means[each.layer]) for each in silenced if means]

    @torch.no_grad()
    def of(self, codes: Sequence[Codes], images: Sequence[int]) -> Iterator[Change]:
        """The change that each silencing makes to the images with these numbers and codes.

        Args:
            codes: of every layer, on all rows.
            images: numbers of the images in the data.
        """
        donated: dict[int, Codes] = {}
        if self.fill == "resample":
            donors, _ = self.data.batch([self._donors[i] for i in images])
            clean = CleanPass(self.vit, donors.to(self.vit.device), {HOOK_IN: self._sources})
            donated = self._codes(clean)
        for i, each in enumerate(self.silenced):
            s = each.layer
            change = -each.written(self.clt, codes[s].at_rows(self.rows))
            if self.fill == "mean":
                change += self._written_means[i]
            elif self.fill == "resample":
                change += each.written(self.clt, donated[s])
            yield dict(zip(self.clt.config.targets(s), change, strict=True))

    def _codes(self, clean: CleanPass) -> dict[int, Codes]:
        return {
            s: self.clt.encode(clean.at(HOOK_IN, s)[:, self.rows], layer=s) for s in self._sources
        }
