"""Random features of equal rate: the control for interventions on selected features.

Firing rates span orders of magnitude, so rates are compared by their ratio: the nearest rate has
the smallest difference in ln rate. The pool is wide enough for several draws to differ, and narrow
compared with the hundreds of features of a layer.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

POOL = 20
"""The least number of features, those nearest in firing rate, from which controls are drawn."""


def equal_rate(
    rates: Float[np.ndarray, " feature"] | Int[np.ndarray, " feature"],
    feature: int,
    candidates: Int[np.ndarray, " candidate"],
    n: int,
    rng: np.random.Generator,
) -> list[int]:
    """Draw `n` candidates, without repeats, from the 20 (or n) nearest to a feature in ln rate.

    Args:
        rates: how often each feature of a layer fires, as shares or as counts.
        feature: the feature to match; if it never fires, the rarest candidates are the nearest.
        candidates: features that may be drawn; all of them fire.
        n: number of features to draw, at most the number of candidates.
        rng: generator of the draw.
    """
    rate = rates[feature] or rates[candidates].min()
    distance = np.abs(np.log(rates[candidates]) - np.log(rate))
    pool = candidates[np.argsort(distance, kind="stable")][: max(POOL, n)]
    return rng.choice(pool, n, replace=False).tolist()
