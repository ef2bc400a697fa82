"""Bootstrap over images; every quantity of one study shares its resamples, so differences pair."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 100


def bootstrap_means(
    values: Float[np.ndarray, "image quantity"], seed: int = 0
) -> Float[np.ndarray, "resample quantity"]:
    """Means of each quantity over images drawn with replacement, the same draws for all."""
    n = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, values.shape[1]))
    for start in range(0, RESAMPLES, _CHUNK):
        drawn = rng.integers(0, n, (_CHUNK, n)) + n * np.arange(_CHUNK)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * _CHUNK).reshape(_CHUNK, n)
        means[start : start + _CHUNK] = counts @ values / n
    return means


def interval(samples: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    """The central 95 % of bootstrap samples."""
    low, high = intervals(samples[:, None])
    return float(low[0]), float(high[0])


def intervals(
    samples: Float[np.ndarray, "resample *quantity"],
) -> tuple[Float[np.ndarray, "*quantity"], Float[np.ndarray, "*quantity"]]:
    """`interval` of every quantity: low ends and high ends; NaN where a sample is."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high
