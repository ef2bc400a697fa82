"""A number with its interval, and the bootstrap over images that most intervals come from."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any

import numpy as np
from jaxtyping import Float

from vit_clt.metrics import Metric

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 100


class Interval(float):
    """A number with the ends of its 95 % interval; both ends are NaN where it has none.

    Arithmetic and format strings use the number alone.
    """

    low: float
    high: float

    def __new__(
        cls, value: float, low: float = float("nan"), high: float = float("nan")
    ) -> Interval:
        """The number `value`, with its interval from `low` to `high`."""
        number = super().__new__(cls, value)
        number.low, number.high = float(low), float(high)
        return number

    # Copies and pickles keep the ends.
    def __getnewargs__(self) -> tuple[float, float, float]:  # type: ignore[override]
        return float(self), self.low, self.high

    @classmethod
    def of(cls, value: float, samples: Float[np.ndarray, " resample"]) -> Interval:
        """`value` with the central 95 % of its bootstrap samples as interval."""
        [low], [high] = intervals(samples[:, None])
        return cls(value, float(low), float(high))

    @classmethod
    def from_columns(cls, row: Mapping[str, Any], name: str) -> Interval:
        """The interval that `columns(name)` wrote into a table row."""
        return cls(row[name], row[f"{name}_low"], row[f"{name}_high"])

    @property
    def holds_zero(self) -> bool:
        """Whether 0 lies within the interval."""
        return self.low <= 0 <= self.high

    def columns(self, name: str) -> dict[str, float]:
        """Table cells of the number and its ends, by column: `name`, `name`_low, `name`_high."""
        return {name: float(self), f"{name}_low": self.low, f"{name}_high": self.high}

    def text(self, form: str, factor: int = 1) -> str:
        """The interval as text, "0.50 (0.40 to 0.60)"; the number alone where it has no interval.

        Args:
            form: format of each number, e.g. ".2f".
            factor: factor that each number is multiplied by, e.g. 100 for percent.
        """
        value, low, high = (f"{factor * end:{form}}" for end in (self, self.low, self.high))
        return value if isnan(self.low) else f"{value} ({low} to {high})"

    def metric(
        self,
        name: str,
        unit: str,
        n: int,
        floor: float | None = None,
        baseline: float | None = None,
    ) -> Metric:
        """The number as metrics.json has it, beside a floor and a baseline."""
        references = (None if level is None else float(level) for level in (floor, baseline))
        return Metric(name, float(self), unit, n, self.low, self.high, *references)


def bootstrap_means(
    values: Float[np.ndarray, "image quantity"], seed: int = 0
) -> Float[np.ndarray, "resample quantity"]:
    """Mean of each quantity over images drawn with replacement, in each of `RESAMPLES` draws.

    All quantities share their draws, so that differences between them are paired.
    """
    n = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, values.shape[1]))
    for start in range(0, RESAMPLES, _CHUNK):
        drawn = rng.integers(0, n, (_CHUNK, n)) + n * np.arange(_CHUNK)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * _CHUNK).reshape(_CHUNK, n)
        means[start : start + _CHUNK] = counts @ values / n
    return means


def mean_intervals(values: Float[np.ndarray, "image quantity"], seed: int = 0) -> list[Interval]:
    """The mean of each quantity over images, with the interval by `bootstrap_means`."""
    ends = intervals(bootstrap_means(values, seed))
    return [Interval(*bounds) for bounds in zip(values.mean(0), *ends, strict=True)]


def intervals(
    samples: Float[np.ndarray, "resample *quantity"],
) -> tuple[Float[np.ndarray, "*quantity"], Float[np.ndarray, "*quantity"]]:
    """The low and the high ends of the central 95 % of bootstrap samples of every quantity.

    Both ends of a quantity are NaN where one of its samples is NaN.
    """
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high
