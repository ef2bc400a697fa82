"""Where two CLTs of one teacher read its layers from different depths: C_a - C_b, by image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_clt.analysis.contributions.scores import ContributionScores
from vit_clt.analysis.stats.intervals import intervals
from vit_clt.errors import InputError


@dataclass(frozen=True)
class ScoreDifference:
    """C_a - C_b cell by cell; the last column of every matrix is the bias.

    Raises:
        InputError: the two are scores of different kinds, rows or images, or of other draws.
    """

    a: ContributionScores
    b: ContributionScores

    def __post_init__(self) -> None:
        for name in ("kind", "reduce", "tokens", "data", "n_images", "seed"):
            found, expected = getattr(self.b, name), getattr(self.a, name)
            if found != expected:
                raise InputError(f"{name} of b is {found}; expected that of a, {expected}.")
        # the teacher's own y, image by image: equal only for the same images in the same order
        of_a, of_b = ((s.chosen, s.moments.variation["all"]) for s in (self.a, self.b))
        for x, y in zip(of_a, of_b, strict=True):
            if x.shape != y.shape or not torch.allclose(x, y, rtol=1e-9, atol=0):
                raise InputError("b was scored on other images or another teacher; expected a's.")

    @property
    def matrix(self) -> Float[Tensor, "target source_and_bias"]:
        """C_a - C_b; NaN above the diagonal."""
        of_a, of_b = (torch.cat([s.matrix, s.bias[:, None]], 1) for s in (self.a, self.b))
        return of_a - of_b

    @cached_property
    def draws(self) -> Float[np.ndarray, "draw target source_and_bias"]:
        """The difference on the same bootstrap draw of the images for both."""
        return self.a.draws - self.b.draws

    @property
    def low(self) -> Float[Tensor, "target source_and_bias"]:
        """Lower ends of the paired 95 % intervals."""
        return self._ends[0]

    @property
    def high(self) -> Float[Tensor, "target source_and_bias"]:
        """Upper ends of the paired 95 % intervals."""
        return self._ends[1]

    @property
    def clear(self) -> Bool[Tensor, "target source_and_bias"]:
        """Whether the interval leaves 0 out."""
        return (self.low > 0) | (self.high < 0)

    def to_frame(self) -> pd.DataFrame:
        """One row per (target, source): difference, low, high; `source` is -1 for the bias."""
        n = len(self.matrix)
        cells = [(l, s) for l in range(n) for s in [*range(l + 1), -1]]
        return pd.DataFrame(
            {
                "target": l,
                "source": s,
                "difference": float(self.matrix[l, s]),
                "low": float(self.low[l, s]),
                "high": float(self.high[l, s]),
            }
            for l, s in cells
        )

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        low, high = intervals(self.draws)
        return torch.from_numpy(low), torch.from_numpy(high)
