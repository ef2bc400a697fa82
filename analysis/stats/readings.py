"""Zero-shot readings of a model and its altered versions: accuracy, its loss, paired intervals.

Intervals are bootstraps over images; every quantity of one study shares its resamples, so that
differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from vit_clt.zero_shot import Outcome

Measure = Literal["top1", "loss", "any_hit"]


class Accuracy(float):
    """Top-1 accuracy as a fraction and its loss in nats, each with its interval.

    `any_hit` is the share of images whose top class is any of the classes they show; None where
    only one class an image is known.
    """

    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float
    any_hit: float | None = None
    any_hit_low: float | None = None
    any_hit_high: float | None = None
    n: int

    @property
    def top1(self) -> float:
        """The accuracy itself."""
        return float(self)

    def columns(self) -> dict[str, float]:
        """For tables: top1, top1_low, top1_high, loss, loss_low, loss_high, n.

        Where several classes an image are known also any_hit, any_hit_low, any_hit_high.
        """
        columns = {
            "top1": self.top1,
            "top1_low": self.low,
            "top1_high": self.high,
            "loss": self.loss,
            "loss_low": self.loss_low,
            "loss_high": self.loss_high,
            "n": self.n,
        }
        for name in ("any_hit", "any_hit_low", "any_hit_high"):
            value = getattr(self, name)
            if value is not None:
                columns[name] = value
        return columns


@dataclass(frozen=True)
class Readings:
    """Several versions of one model read on the same images; their differences are paired."""

    names: list[str]
    samples: dict[Measure, np.ndarray]
    """Bootstrap means "resample version" per measure."""
    means: dict[Measure, np.ndarray]
    n: int

    def __getitem__(self, name: str) -> Accuracy:
        i = self.names.index(name)
        accuracy = Accuracy(self.means["top1"][i])
        accuracy.low, accuracy.high = interval(self.samples["top1"][:, i])
        accuracy.loss = float(self.means["loss"][i])
        accuracy.loss_low, accuracy.loss_high = interval(self.samples["loss"][:, i])
        if "any_hit" in self.means:
            accuracy.any_hit = float(self.means["any_hit"][i])
            accuracy.any_hit_low, accuracy.any_hit_high = interval(self.samples["any_hit"][:, i])
        accuracy.n = self.n
        return accuracy

    def difference(self, a: str, b: str, measure: Measure = "top1") -> tuple[float, float, float]:
        """a - b with its paired 95 % interval: (value, low, high)."""
        i, j = self.names.index(a), self.names.index(b)
        value = float(self.means[measure][i] - self.means[measure][j])
        samples = self.samples[measure]
        return value, *interval(samples[:, i] - samples[:, j])

    def recovered(self, name: str, full: str, floor: str, measure: Measure = "top1") -> float:
        """(value - floor) / (full - floor); NaN where the interval of full - floor contains 0."""
        return self.recovered_interval(name, full, floor, measure)[0]

    def recovered_interval(
        self, name: str, full: str, floor: str, measure: Measure = "top1"
    ) -> tuple[float, float, float]:
        """`recovered` with its 95 % interval: (value, low, high), NaN where it is undefined.

        Value, full and floor share their resamples; those in which full equals floor are left out.
        """
        span, low, high = self.difference(full, floor, measure)
        if low <= 0 <= high:
            return float("nan"), float("nan"), float("nan")
        i, j, k = (self.names.index(each) for each in (name, full, floor))
        samples = self.samples[measure]
        spans = samples[:, j] - samples[:, k]
        defined = spans != 0
        ratios = (samples[:, i] - samples[:, k])[defined] / spans[defined]
        return self.difference(name, floor, measure)[0] / span, *interval(ratios)

    def mean(self, names: Sequence[str], measure: Measure = "top1") -> tuple[float, float, float]:
        """The mean over several versions with its 95 % interval over images: (value, low, high)."""
        chosen = [self.names.index(name) for name in names]
        value = float(self.means[measure][chosen].mean())
        return value, *interval(self.samples[measure][:, chosen].mean(1))


def gather_readings(
    outcomes: Mapping[str, list[Outcome]],
    seed: int = 0,
    label_sets: Sequence[frozenset[int]] | None = None,
) -> Readings:
    """Batches of outcomes per version to readings; every version saw the same images in order.

    With `label_sets` (`ImageData.label_sets`, one per image in that order) the readings also say
    how often the top class is any of an image's classes.
    """
    per_image: dict[Measure, np.ndarray] = {
        "top1": _columns(
            [torch.cat([o.correct for o in batches]) for batches in outcomes.values()]
        ),
        "loss": _columns([torch.cat([o.loss for o in batches]) for batches in outcomes.values()]),
    }
    if label_sets is not None:
        tops = [torch.cat([o.top for o in batches]).tolist() for batches in outcomes.values()]
        per_image["any_hit"] = _columns(
            [
                torch.tensor([c in shown for c, shown in zip(top, label_sets, strict=True)])
                for top in tops
            ]
        )
    return Readings(
        names=list(outcomes),
        samples={measure: bootstrap_means(values, seed) for measure, values in per_image.items()},
        means={measure: values.mean(0) for measure, values in per_image.items()},
        n=len(per_image["top1"]),
    )


def _columns(versions: list[torch.Tensor]) -> np.ndarray:
    return torch.stack(versions, dim=1).double().numpy()


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
