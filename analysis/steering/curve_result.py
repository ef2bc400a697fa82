"""The result of a steering curve: measures of the model at every strength, in tables and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

import pandas as pd

from vit_clt.analysis.reporting.study import Facts
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.names import feature_text
from vit_clt.analysis.steering.result import SteeringStudy
from vit_clt.analysis.steering.versions import STEERED, Steered
from vit_clt.analysis.steering.wording import (
    MIXED_ROWS,
    change_text,
    edits_text,
    rows_name,
)
from vit_clt.choices import EditKind
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

UNSTEERED = "unsteered"


@dataclass(frozen=True, kw_only=True)
class SteeringCurve(SteeringStudy):
    """Measures of the model at every strength of the steered features."""

    frame: pd.DataFrame
    """One row per version ("unsteered", "steered", "random j"), strength and measure. Columns:
    features, raw (the value that z is set to, or the factor), class and label (of class measures),
    unit, value, low, high, change (from the unsteered model, paired), change_low, change_high, n,
    and for the steered version beyond (value minus the mean of the random features, paired over
    images, with the random features as given), beyond_low, beyond_high. Measures:
    "probability" (fraction) and "logit" of every class, "kl" (nats, KL of the unsteered model's
    probabilities from these), and with labels "top1" (fraction) and "loss" (nats)."""
    steered: Steered
    controls: list[Steered]
    kind: EditKind
    strengths: list[float]
    """Multiples of the typical activation (clamp), or factors on z (scale)."""
    only_active: bool
    target: int | None
    """Class compared with the random features; None for the one whose probability changes most."""
    query: list[int]
    """Numbers of the images of `data` that are measured; empty where all are."""
    class_names: list[str]
    n_typical: int
    """Number of images that typical activations and firing rates were measured on."""

    @property
    def labelled(self) -> bool:
        """Whether accuracy and loss are known."""
        return bool((self.frame["measure"] == "loss").any())

    @property
    def unit(self) -> str:
        """The unit of strengths, in words."""
        return "× typical activation" if self.kind == "clamp" else "factor on z"

    def moved_classes(self, n: int = 4) -> list[int]:
        """The n classes whose mean probability changes most over the strengths, `target` first."""
        f = self.frame
        rows = f[(f["version"] == STEERED) & (f["measure"] == "probability")]
        change = rows.assign(size=rows["change"].abs()).groupby("label")["size"].max()
        ranked = [int(label) for label in change.sort_values(ascending=False, kind="stable").index]
        if self.target is not None:
            ranked = [self.target, *(label for label in ranked if label != self.target)]
        return ranked[:n]

    @property
    def features_text(self) -> str:
        """The steered features, with their names."""
        return ", ".join(feature_text(s, i, self.names) for s, i in self.steered.features)

    def facts(self) -> Facts:
        """Images, features and edits."""
        return self.facts_with(
            features=[f"{s}:{i}" for s, i in self.steered.features],
            search=None,
            kind=self.kind,
            only_active=self.only_active,
            query=self.query,
        )

    def caption(self) -> str:
        """The images, the edit, L0, and what the numbers after a value are."""
        typical = ", ".join(f"{value:.3g}" for value in self.steered.typical)
        return (
            f"{self.data}, N = {self.n}, {self.features_text} on {rows_name(self.tokens)}, "
            f"strength: {self.unit} (typical: {typical} over {self.n_typical} images), error "
            f"nodes, stream inputs, L0 {self.l0:.1f}, readout: {self.readout}, seed "
            f"{self.seed}; after a value its change from the unsteered model, with the paired "
            f"95 % interval; beyond random: minus the mean of {len(self.controls)} random features"
        )

    def shown(self) -> pd.DataFrame:
        """One row per strength, as text.

        Probabilities (%), KL, accuracy and loss stand with their change from the unsteered model;
        the first class, KL and loss also with their value minus the mean of the random features
        (points, nats). Intervals are paired over images; those of the values themselves are in the
        frame.
        """
        shown_classes = self.moved_classes(3)
        rows = []
        for strength in [None, *self.strengths]:
            version = UNSTEERED if strength is None else STEERED
            row = {"strength": "unsteered" if strength is None else f"{strength:g}"}
            for label in shown_classes:
                probability = self._at(version, strength, "probability", label)
                name = f"{self.class_names[label]} %"
                row[name] = _with_change(probability, 100, 2)
                if label == shown_classes[0]:
                    row[f"{name}, beyond random (points)"] = _beyond(probability, 100, 2)
            kl = self._at(version, strength, "kl", None)
            row["KL (nats)"] = f"{kl['value']:.4f}"
            row["KL beyond random"] = _beyond(kl, 1, 4)
            if self.labelled:
                top1, loss = (self._at(version, strength, m, None) for m in ("top1", "loss"))
                row["top-1 %"] = _with_change(top1, 100, 2)
                row["loss (nats)"] = _with_change(loss, 1, 4)
                row["loss beyond random"] = _beyond(loss, 1, 4)
            rows.append(row)
        return pd.DataFrame(rows)

    def notes(self) -> Sequence[str]:
        """What the edit does to the codes."""
        notes = [edits_text(self.kind, self.only_active)]
        if self.tokens == "all" and self.kind == "clamp":
            notes.append(MIXED_ROWS)
        return notes

    def metrics(self) -> list[Metric]:
        """The steered model's probabilities, KL, accuracy and loss, by strength.

        Beside each stand its change from the unsteered model ("_change") and its value minus the
        mean of the random features ("_beyond_random"), both paired over images.

        Floor: the mean of the random features at that strength. Baseline: the unsteered model.
        """
        keys = ["strength", "measure", "label"]
        shown = self.frame[self.frame["measure"] != "logit"]
        random = shown[shown["version"].str.startswith("random")]
        floors = random.groupby(keys, dropna=False)["value"].mean().rename("floor").reset_index()
        rows = shown[shown["version"] == STEERED].merge(floors, on=keys)
        metrics = []
        for r in rows.to_dict("records"):
            class_part = "" if pd.isna(r["class"]) else f"_{r['class']}"
            name = f"{self.kind}_{r['strength']:g}_{r['measure']}{class_part}"
            baseline, unit = r["value"] - r["change"], r["unit"]
            value = Interval(r["value"], r["low"], r["high"])
            change, beyond = (Interval.from_columns(r, column) for column in ("change", "beyond"))
            metrics += [
                value.metric(name, unit, self.n, r["floor"], baseline),
                change.metric(f"{name}_change", unit, self.n),
                beyond.metric(f"{name}_beyond_random", unit, self.n),
            ]
        return metrics

    def figure(self) -> go.Figure:
        """Changes by class; those of one class, KL, accuracy and loss beside random features."""
        from vit_clt.analysis.steering.curve_figure import curve_figure

        return curve_figure(self)

    def page(self) -> str:
        """How to read it, the figure, and the numbers."""
        from vit_clt.analysis.steering.report import steering_report

        facts = {
            "Trajectory": "stream inputs, error nodes; typical activations on the teacher's",
            "Typical activation": f"{self.steered.activity_text()} ({self.n_typical} images)",
        }
        return steering_report(self, f"Steering {self.features_text}", facts)

    def _at(
        self, version: str, strength: float | None, measure: str, label: int | None
    ) -> pd.Series:
        f = self.frame
        rows = f[(f["version"] == version) & (f["measure"] == measure)]
        if label is not None:
            rows = rows[rows["label"] == label]
        return (rows if strength is None else rows[rows["strength"] == strength]).iloc[0]


def _with_change(row: pd.Series, factor: int, digits: int) -> str:
    text = f"{factor * row['value']:.{digits}f}"
    # a change of 0 on every image is not shown; a single image has no interval
    ends = (row[end] for end in ("change", "change_low", "change_high"))
    if all(end == 0 or isnan(end) for end in ends):
        return text
    return f"{text}, {change_text(row, 'change', factor, digits)}"


def _beyond(row: pd.Series, factor: int, digits: int) -> str:
    return "" if isnan(row["beyond"]) else change_text(row, "beyond", factor, digits)
