"""AUC: how often an image of a group has a larger value than an image outside it.

    AUC(group, quantity) = P(an image of the group has more of the quantity than one outside it)

with ties counted half, which is Mann and Whitney's statistic: from the ranks of the images, (sum of
ranks in the group - n_1 (n_1 + 1) / 2) / (n_1 n_0). 0.5 is chance.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

_EXACT = 4096
"""With fewer images every sum of ranks, halves included, is exact in float32."""


def ranks(
    values: Float[np.ndarray, "image quantity"],
) -> Float[np.ndarray, "image quantity"]:
    """Ranks of the images by each quantity, ties averaged; float32 where sums are exact."""
    exact = np.float32 if len(values) < _EXACT else np.float64
    return rankdata(values, axis=0).astype(exact)


def auc(
    inside: Bool[np.ndarray, "group image"], ranked: Float[np.ndarray, "image quantity"]
) -> Float[np.ndarray, "group quantity"]:
    """AUC of every group and quantity; NaN for a group of all images or of none.

    Args:
        inside: which images each group has.
        ranked: `ranks` of the quantities.
    """
    there = inside.sum(1, dtype=np.float64)[:, None]
    pairs = there * (len(ranked) - there)
    sums = (inside.astype(ranked.dtype) @ ranked).astype(np.float64)
    return (sums - there * (there + 1) / 2) / np.where(pairs, pairs, np.nan)
