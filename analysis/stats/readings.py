"""Readings of a model and its altered versions: accuracy, its loss, paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from vit_clt.analysis.stats.image_groups import ImageGroups, image_groups
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.metrics import Metric
from vit_clt.readouts.base import Outcome

Measure = Literal["top1", "loss", "any_hit"]
UNITS: dict[Measure, str] = {"top1": "fraction", "loss": "nats", "any_hit": "fraction"}
MEASURES: tuple[Measure, ...] = ("top1", "loss")
"""The measures that every reading has; `any_hit` needs several classes an image."""


@dataclass(frozen=True)
class Reading:
    """Accuracy and loss of one version of a model on n images."""

    top1: Interval
    """Accuracy, a fraction."""
    loss: Interval
    """Mean cross-entropy of the label under the readout, in nats."""
    n: int
    any_hit: Interval | None = None
    """Share of images whose top class is any of the classes they show; None where only one class
    an image is known."""

    def columns(self) -> dict[str, float]:
        """Table cells by column: top1, top1_low, top1_high, loss, loss_low, loss_high, n.

        Columns any_hit, any_hit_low and any_hit_high follow where several classes an image are
        known.
        """
        columns = {**self.top1.columns("top1"), **self.loss.columns("loss"), "n": self.n}
        return columns if self.any_hit is None else columns | self.any_hit.columns("any_hit")

    def metrics(
        self, name: str, floor: Reading | None = None, baseline: Reading | None = None
    ) -> list[Metric]:
        """Metrics `name`_top1 and `name`_loss, beside those of a floor and of a baseline."""
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
    """Readings of several versions of one model on the same images; differences are paired."""

    names: list[str]
    samples: dict[Measure, np.ndarray]
    """Bootstrap means by measure, "resample version"."""
    means: dict[Measure, np.ndarray]
    """Means over the images by measure, " version"."""
    n: int
    """Number of images."""
    groups: ImageGroups | None = None
    """Groups of images that the bootstrap draws; None where it draws images."""

    def __getitem__(self, name: str) -> Reading:
        return Reading(
            self.mean([name]),
            self.mean([name], "loss"),
            self.n,
            self.mean([name], "any_hit") if "any_hit" in self.means else None,
        )

    def draws(self, name: str, measure: Measure) -> Float[np.ndarray, " resample"]:
        """Bootstrap means of one measure of one version."""
        return self.samples[measure][:, self.names.index(name)]

    def mean(self, names: Sequence[str], measure: Measure = "top1") -> Interval:
        """The mean over several versions, with its interval over images."""
        versions = [self.names.index(name) for name in names]
        value = float(self.means[measure][versions].mean())
        return Interval.of(value, self.samples[measure][:, versions].mean(1))

    def difference(self, a: str, b: str | Sequence[str], measure: Measure = "top1") -> Interval:
        """The measure of a less that of b, or less its mean over several b; interval paired."""
        i = self.names.index(a)
        versions = [self.names.index(name) for name in ([b] if isinstance(b, str) else b)]
        means, samples = self.means[measure], self.samples[measure]
        value = float(means[i] - means[versions].mean())
        return Interval.of(value, samples[:, i] - samples[:, versions].mean(1))

    def recovered(self, name: str, full: str, floor: str, measure: Measure = "top1") -> Interval:
        """The share (value - floor) / (full - floor) of a measure, with its interval.

        The three versions share their resamples; resamples in which full equals floor are left
        out. The share is NaN where the interval of full - floor contains 0.

        Args:
            name: version whose share it is.
            full: version with share 1.
            floor: version with share 0.
            measure: "top1", "loss" or "any_hit".
        """
        span = self.difference(full, floor, measure)
        if span.holds_zero:
            return Interval(float("nan"))
        values, fulls, floors = (self.draws(version, measure) for version in (name, full, floor))
        defined = fulls != floors
        ratios = (values - floors)[defined] / (fulls - floors)[defined]
        return Interval.of(self.difference(name, floor, measure) / span, ratios)


def accuracy_and_loss(top1: float, loss: float) -> str:
    """Accuracy in percent and loss in nats as tables print them: "84.20 / 0.5123"."""
    return f"{100 * top1:.2f} / {loss:.4f}"


class ReadingSums:
    """Sums of the outcomes of several versions over groups of images, gathered batch by batch.

    Args:
        names: names of the versions.
        groups: the groups of all images.
        label_sets: the classes of each image (`ImageData.label_sets`); the readings then also have
            `any_hit`.
    """

    def __init__(
        self,
        names: Sequence[str],
        groups: ImageGroups,
        label_sets: Sequence[frozenset[int]] | None = None,
    ):
        self._versions = {name: i for i, name in enumerate(names)}
        self._groups, self._label_sets = groups, label_sets
        measures = MEASURES if label_sets is None else (*MEASURES, "any_hit")
        shape = len(groups), len(self._versions)
        self._sums = {measure: torch.zeros(shape, dtype=torch.float64) for measure in measures}

    def add(self, name: str, outcome: Outcome, first: int) -> None:
        """Add one version's outcomes of a batch, whose first image has the number `first`."""
        values = {"top1": outcome.correct, "loss": outcome.loss}
        if self._label_sets is not None:
            shown = self._label_sets[first : first + len(outcome.top)]
            tops = outcome.top.tolist()
            hits = [top in labels for top, labels in zip(tops, shown, strict=True)]
            values["any_hit"] = torch.tensor(hits)
        version = self._versions[name]
        for measure, sums in self._sums.items():
            self._groups.add(sums[:, version], values[measure].cpu(), first)

    def readings(self, seed: int = 0) -> Readings:
        """The readings, once all images have been added; `seed` is that of the bootstrap."""
        sums = {measure: values.numpy() for measure, values in self._sums.items()}
        n, groups = len(self._groups.of), self._groups
        return Readings(
            names=list(self._versions),
            samples={m: groups.bootstrap_means(values, seed) for m, values in sums.items()},
            means={m: values.sum(0) / n for m, values in sums.items()},
            n=n,
            groups=None if groups.single else groups,
        )


def gather_readings(
    outcomes: Mapping[str, list[Outcome]],
    seed: int = 0,
    label_sets: Sequence[frozenset[int]] | None = None,
) -> Readings:
    """Join the outcomes of each version, batch by batch, into readings with bootstrap intervals.

    Args:
        outcomes: by version, its outcomes on the same images in the same order.
        seed: seed of the bootstrap.
        label_sets: the classes of each image in that order (`ImageData.label_sets`); the readings
            then also have `any_hit`.
    """
    n = sum(len(outcome.top) for outcome in next(iter(outcomes.values())))
    sums = ReadingSums(list(outcomes), image_groups(n, None), label_sets)
    for name, batches in outcomes.items():
        first = 0
        for outcome in batches:
            sums.add(name, outcome, first)
            first += len(outcome.top)
    return sums.readings(seed)
