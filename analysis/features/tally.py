"""What one pass over the images keeps of every feature of a layer: nothing of size image x feature.

Beside counts and a histogram (whose range is not known beforehand, and so doubles as it must), each
feature keeps a few images: those it is most active on, and as many drawn at random from all on
which it is active.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vit_clt.analysis.features.active import N_GROUPS, ActiveCodes, FeatureCounts
from vit_clt.hooks.rows import TokenRows

SAMPLE = 64
"""Images a feature keeps at random; of a feature active on no more, all."""
TOGETHER = 2048
"""Images, at random, on which co-activation is measured; all, if there are no more."""


class KeptImages:
    """Of every feature the images with the largest keys, in descending order; ties: lower row."""

    rows: Int[Tensor, "feature place"]
    """-1 where there are fewer."""
    values: Float[Tensor, "feature place"]
    """Image-level activation, signed."""

    def __init__(self, n_features: int, places: int):
        self._keys = torch.full((n_features, places), -torch.inf, dtype=torch.float64)
        self.rows = torch.full((n_features, places), -1)
        self.values = torch.zeros(n_features, places)

    def add(
        self,
        keys: Float[Tensor, "feature image"],
        values: Float[Tensor, "feature image"],
        first: int,
    ) -> None:
        """Images in row order from `first` on; those with value 0 are none of the feature's."""
        keys = keys.double().masked_fill(values == 0, -torch.inf)
        changed = (keys > self._keys[:, -1:]).any(1).nonzero()[:, 0]
        rows = torch.arange(first, first + keys.shape[1]).expand(len(changed), -1)
        all_keys = torch.cat([self._keys[changed], keys[changed]], 1)
        # stable, and earlier rows stand first
        order = all_keys.sort(dim=1, descending=True, stable=True).indices[:, : self.rows.shape[1]]
        self._keys[changed] = all_keys.gather(1, order)
        for name, new in (("rows", rows), ("values", values[changed].float())):
            kept = getattr(self, name)
            kept[changed] = torch.cat([kept[changed], new], 1).gather(1, order)
        self.rows[self._keys == -torch.inf] = -1

    def of(self, feature: int) -> tuple[Int[Tensor, " image"], Float[Tensor, " image"]]:
        """The rows kept of one feature, and its activation there."""
        there = self.rows[feature] >= 0
        return self.rows[feature][there], self.values[feature][there]


class FeatureTally:
    """Counts, histogram and kept images of every feature of one source layer.

    Args:
        n_features: F.
        rows: the token rows of the model.
        top: images kept by largest |z|.
        turns: of every image its place in a random order of all: those with the lowest are the
            random ones, whatever order and batches they come in.
    """

    counts: FeatureCounts
    magnitude: Float[Tensor, "kind feature"]
    """Sum of |z| over the active rows, in float64."""
    histograms: FoldingHistograms
    top: KeptImages
    sample: KeptImages
    together: UInt8[np.ndarray, "feature byte"]
    """A bit for each image whose turn is below `TOGETHER`: is the feature active there?"""

    def __init__(self, n_features: int, rows: TokenRows, top: int, turns: Int[Tensor, " image"]):
        self._turns = turns
        self.counts = FeatureCounts(n_features, rows.groups)
        self.magnitude = torch.zeros(N_GROUPS, n_features, dtype=torch.float64)
        self.histograms = FoldingHistograms(N_GROUPS, n_features)
        self.top = KeptImages(n_features, top)
        self.sample = KeptImages(n_features, SAMPLE)
        n_bytes = -(-min(TOGETHER, len(turns)) // 8)
        self.together = np.zeros((n_features, n_bytes), np.uint8)

    def add(self, active: ActiveCodes, first: int) -> None:
        """The next images, in row order from `first` on."""
        features, values = active.features.cpu(), active.values.detach().float().cpu()
        kinds, n_features = self.counts.kinds(active).cpu(), active.n_features
        at = kinds * n_features + features
        magnitudes = torch.bincount(at, values.abs().double(), N_GROUPS * n_features)
        self.magnitude += magnitudes.view(N_GROUPS, -1)
        self.histograms.add(kinds, features, values)
        of_images = active.of_images().detach().float().cpu().T
        self.counts.add(active, of_images.T)
        self.top.add(of_images.abs(), of_images, first)
        turns = self._turns[first : first + active.n_images]
        self.sample.add(-turns.expand(n_features, -1).double(), of_images, first)
        chosen = (turns < TOGETHER).nonzero()[:, 0]
        feature, image = (of_images[:, chosen] != 0).numpy().nonzero()
        turn = turns[chosen].numpy()[image]
        np.bitwise_or.at(self.together, (feature, turn // 8), (1 << turn % 8).astype(np.uint8))

    def jaccard(self, feature: int, other: FeatureTally, there: int) -> float:
        """Images on which both are active, as a share of those on which either is; NaN if none.

        Over the images whose turn is below `TOGETHER`.
        """
        a, b = self.together[feature], other.together[there]
        either = int(np.unpackbits(a | b).sum())
        return int(np.unpackbits(a & b).sum()) / either if either else float("nan")


BINS = 32
"""Bins of each sign; at least half of them lie within a feature's range."""


class FoldingHistograms:
    """Counts in even bins over [-2^e, 2^e], e by feature: the least with 2^e above every |value|.

    When a larger value comes, e grows and bins are folded in pairs. Edges are whole multiples of
    powers of two, so the counts are exact, whatever the order and batches values come in.
    """

    counts: Int[Tensor, "kind sign feature bin"]
    """Bin b holds b <= |value| BINS / 2^e < b + 1; signs: positive, negative."""
    exponents: Int[Tensor, " feature"]

    def __init__(self, n_kinds: int, n_features: int):
        self.counts = torch.zeros(n_kinds, 2, n_features, BINS, dtype=torch.int32)
        self.exponents = torch.full((n_features,), _NONE, dtype=torch.int64)

    def add(
        self,
        kinds: Int[Tensor, " entry"],
        features: Int[Tensor, " entry"],
        values: Float[Tensor, " entry"],
    ) -> None:
        """Count non-zero values, each of one kind and feature."""
        size = values.abs().double()
        needed = self.exponents.scatter_reduce(
            0, features, torch.frexp(size).exponent.long(), "amax"
        )
        growth = torch.where(self.exponents == _NONE, 0, needed - self.exponents)
        for g in growth.unique().tolist():
            if g:
                self._fold((growth == g).nonzero()[:, 0], g)
        self.exponents = needed
        n_features = len(needed)
        # a factor of a power of two is exact
        bins = torch.ldexp(size * BINS, -needed[features]).long()
        at = ((kinds * 2 + (values < 0)) * n_features + features) * BINS + bins
        found = torch.bincount(at, minlength=self.counts.numel())
        self.counts += found.view(self.counts.shape).to(self.counts.dtype)

    def of(self, feature: int) -> tuple[Float[np.ndarray, " edge"], Int[np.ndarray, "kind bin"]]:
        """Bin edges, ascending, and counts; 0 is an edge, and empty outer bins are left out."""
        positive, negative = self.counts[:, :, feature].unbind(1)
        both = torch.cat([negative.flip(1), positive], 1).numpy()
        steps = np.arange(-BINS, BINS + 1) * 2.0 ** int(self.exponents[feature]) / BINS
        # bins 0 to 2 BINS, cut down to the outermost that hold something, and to 0
        used = [BINS, *np.flatnonzero(both.any(0)).tolist()]
        first, last = min(used), max(BINS, max(used) + (len(used) > 1))
        if not negative.any():
            first = BINS
        if not positive.any():
            last = BINS
        return steps[first : last + 1], both[:, first:last]

    def _fold(self, features: Tensor, growth: int) -> None:
        old = self.counts[:, :, features]
        width = 2 ** min(growth, BINS.bit_length() - 1)
        folded = old.unflatten(-1, (BINS // width, width)).sum(-1).to(old.dtype)
        new = torch.zeros_like(old)
        new[..., : BINS // width] = folded
        self.counts[:, :, features] = new


_NONE = -(2**20)  # below the exponent of every number
