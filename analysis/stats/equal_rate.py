"""Random features of equal rate: the control of what is done to chosen features.

Firing rates span orders of magnitude, so that closeness is a ratio: "nearest" is nearest in
|ln rate|. The pool is wide enough that several draws differ, and narrow beside the hundreds of
features of a layer.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

POOL = 20
"""Features nearest in firing rate, at least, from which controls are drawn."""


def equal_rate(
    rates: Float[np.ndarray, " feature"] | Int[np.ndarray, " feature"],
    feature: int,
    candidates: Int[np.ndarray, " candidate"],
    n: int,
    rng: np.random.Generator,
) -> list[int]:
    """`n` of the candidates, without repeats, from the 20 (or n) nearest in |ln rate|.

    Args:
        rates: how often each feature of a layer fires, as shares or as counts.
        feature: the one to match; if it never fires, the rarest are the nearest.
        candidates: features that may be drawn; all fire.
        n: how many, at most as many as there are candidates.
        rng: of the draw.
    """
    own = rates[feature] or rates[candidates].min()
    distance = np.abs(np.log(rates[candidates]) - np.log(own))
    pool = candidates[np.argsort(distance, kind="stable")][: max(POOL, n)]
    return rng.choice(pool, n, replace=False).tolist()
