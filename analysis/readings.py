"""Zero-shot readings of a model and its altered versions: accuracy, its loss, paired intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vit_clt.analysis.intervals import bootstrap_means, interval
from vit_clt.zero_shot import Outcome

Measure = Literal["top1", "loss"]


class Accuracy(float):
    """Top-1 accuracy as a fraction, with its interval, and its loss in nats with its interval."""

    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float
    n: int

    @property
    def top1(self) -> float:
        """The accuracy itself."""
        return float(self)

    def columns(self) -> dict[str, float]:
        """For tables: top1, top1_low, top1_high, loss, loss_low, loss_high, n."""
        return {
            "top1": self.top1,
            "top1_low": self.low,
            "top1_high": self.high,
            "loss": self.loss,
            "loss_low": self.loss_low,
            "loss_high": self.loss_high,
            "n": self.n,
        }


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
        span, low, high = self.difference(full, floor, measure)
        if low <= 0 <= high:
            return float("nan")
        return self.difference(name, floor, measure)[0] / span


def gather_readings(outcomes: Mapping[str, list[Outcome]], seed: int = 0) -> Readings:
    """Batches of outcomes per version to readings; every version saw the same images in order."""
    per_image: dict[Measure, np.ndarray] = {
        "top1": _columns(
            [torch.cat([o.correct for o in batches]) for batches in outcomes.values()]
        ),
        "loss": _columns([torch.cat([o.loss for o in batches]) for batches in outcomes.values()]),
    }
    return Readings(
        names=list(outcomes),
        samples={measure: bootstrap_means(values, seed) for measure, values in per_image.items()},
        means={measure: values.mean(0) for measure, values in per_image.items()},
        n=len(per_image["top1"]),
    )


def _columns(versions: list[torch.Tensor]) -> np.ndarray:
    return torch.stack(versions, dim=1).double().numpy()
