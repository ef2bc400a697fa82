"""Zero-shot readings of a model and its altered versions: accuracy, its loss, paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.metrics import Metric
from vit_clt.zero_shot import Outcome

Measure = Literal["top1", "loss", "any_hit"]
UNITS: dict[Measure, str] = {"top1": "fraction", "loss": "nats", "any_hit": "fraction"}
MEASURES: tuple[Measure, ...] = ("top1", "loss")
"""Those of every reading."""


@dataclass(frozen=True)
class Reading:
    """How well one version of a model answers on N images."""

    top1: Interval
    """Zero-shot accuracy, a fraction."""
    loss: Interval
    """Mean cross-entropy at the model's own logit scale, in nats."""
    n: int
    any_hit: Interval | None = None
    """Share of images whose top class is any of the classes they show; None where only one class
    an image is known."""

    def columns(self) -> dict[str, float]:
        """For tables: top1, top1_low, top1_high, loss, loss_low, loss_high, n.

        Where several classes an image are known also any_hit, any_hit_low, any_hit_high.
        """
        columns = {**self.top1.columns("top1"), **self.loss.columns("loss"), "n": self.n}
        return columns if self.any_hit is None else columns | self.any_hit.columns("any_hit")

    def metrics(
        self, name: str, floor: Reading | None = None, baseline: Reading | None = None
    ) -> list[Metric]:
        """`name`_top1 and `name`_loss, beside the same of a floor and of a baseline."""
        return [
            getattr(self, measure).metric(
                f"{name}_{measure}",
                UNITS[measure],
                self.n,
                None if floor is None else getattr(floor, measure),
                None if baseline is None else getattr(baseline, measure),
            )
            for measure in MEASURES
        ]


@dataclass(frozen=True)
class Readings:
    """Several versions of one model read on the same images; their differences are paired."""

    names: list[str]
    samples: dict[Measure, np.ndarray]
    """Bootstrap means "resample version" per measure."""
    means: dict[Measure, np.ndarray]
    n: int

    def __getitem__(self, name: str) -> Reading:
        return Reading(
            self.mean([name]),
            self.mean([name], "loss"),
            self.n,
            self.mean([name], "any_hit") if "any_hit" in self.means else None,
        )

    def draws(self, name: str, measure: Measure) -> Float[np.ndarray, " resample"]:
        """Bootstrap means of one version."""
        return self.samples[measure][:, self.names.index(name)]

    def mean(self, names: Sequence[str], measure: Measure = "top1") -> Interval:
        """The mean over several versions, with its interval over images."""
        versions = [self.names.index(name) for name in names]
        value = float(self.means[measure][versions].mean())
        return Interval.of(value, self.samples[measure][:, versions].mean(1))

    def difference(self, a: str, b: str | Sequence[str], measure: Measure = "top1") -> Interval:
        """a - b, or a less the mean over several b, with its paired interval."""
        i = self.names.index(a)
        versions = [self.names.index(name) for name in ([b] if isinstance(b, str) else b)]
        means, samples = self.means[measure], self.samples[measure]
        value = float(means[i] - means[versions].mean())
        return Interval.of(value, samples[:, i] - samples[:, versions].mean(1))

    def recovered(self, name: str, full: str, floor: str, measure: Measure = "top1") -> Interval:
        """(value - floor) / (full - floor); NaN where the interval of full - floor contains 0.

        Value, full and floor share their resamples; those in which full equals floor are left out.
        """
        span = self.difference(full, floor, measure)
        if span.holds_zero:
            return Interval(float("nan"))
        value, whole, nothing = (self.draws(each, measure) for each in (name, full, floor))
        defined = whole != nothing
        ratios = (value - nothing)[defined] / (whole - nothing)[defined]
        return Interval.of(self.difference(name, floor, measure) / span, ratios)


def accuracy_and_loss(top1: float, loss: float) -> str:
    """As tables print both, accuracy in percent and loss in nats: "84.20 / 0.5123"."""
    return f"{100 * top1:.2f} / {loss:.4f}"


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
