"""Histograms of many features in one pass, with no range known beforehand."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

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
