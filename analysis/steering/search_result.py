"""The result of a steering search: the features found, in tables and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

import pandas as pd

from vit_clt.analysis.reporting.study import Facts
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.names import feature_text
from vit_clt.analysis.stats.ranks import Agreement
from vit_clt.analysis.steering.readings import STEERED_UNITS
from vit_clt.analysis.steering.result import SteeringStudy
from vit_clt.analysis.steering.scaled_features import SCALES
from vit_clt.analysis.steering.versions import Feature
from vit_clt.analysis.steering.wording import change_text, edits_text, rows_name
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class SteeringSearch(SteeringStudy):
    """The features found, and the effect of steering each beside that of random features."""

    frame: pd.DataFrame
    """One row per feature and scale: candidate (its rank, from 0), role ("found" or "random"),
    layer, feature; on the ranking half rate, image_rate, cls_rate (shares of the rows steered, of
    images and of CLS rows on which it is active) and effect; scale, predicted
    ((scale - 1) * effect); and the changes measured on the other half, paired with the unsteered
    model, each with _low and _high: contrast (logit minus the mean of the others'), probability, kl
    and, with labels, top1 and loss. Features found also have each change minus the mean of the
    random ones beside them, paired over images, random features as given: contrast_beyond, ..."""
    baseline: dict[str, float]
    """The measures of the unsteered model on the measuring half."""
    agreement: Agreement | None
    """Spearman correlation of the predicted and the measured change of contrast over the features
    found, each suppressed; its interval takes predictions as given. None for fewer than three."""
    slope: Interval
    """Slope of measured (m) on predicted (p) changes of contrast over the features found, each
    suppressed: sum m p / sum p^2. Its interval takes predictions as given; NaN where all are 0."""
    request: str
    """The class as it was asked for."""
    target: str
    label: int
    n_searched: int
    """Features that fire on the ranking half, over all layers."""
    n_ranked: int
    """Images that the ranking is computed on."""

    @property
    def candidates(self) -> list[Feature]:
        """The features found by the search, in order of |effect|."""
        rows = self.frame[(self.frame["role"] == "found") & (self.frame["scale"] == SCALES[0])]
        return list(zip(rows["layer"].tolist(), rows["feature"].tolist(), strict=True))

    @property
    def measures(self) -> list[str]:
        """Measures that the frame holds."""
        return list(self.baseline)

    def random_mean(self, candidate: int, scale: float | int, measure: str) -> float:
        """Mean change over the random features beside a candidate."""
        f = self.frame
        rows = f[(f["role"] == "random") & (f["candidate"] == candidate) & (f["scale"] == scale)]
        return float(rows[measure].mean())

    def facts(self) -> Facts:
        """Images that are measured, and the class."""
        return self.facts_with(
            features=[], search=self.request, kind="scale", only_active=False, query=[]
        )

    def caption(self) -> str:
        """Both halves of the images, class, rows and L0."""
        return (
            f"{self.data}, ranked on {self.n_ranked} images, measured on the other N = {self.n}; "
            f"class: {self.target}, {rows_name(self.tokens)}, error nodes, stream inputs, L0 "
            f"{self.l0:.1f}, readout: {self.readout}, seed {self.seed}"
        )

    def shown(self) -> pd.DataFrame:
        """One row per feature found and scale, as text.

        It says how often the feature fires (rows steered, images, CLS rows), the predicted and the
        measured change of contrast, the latter minus that of random features, and the changes of
        probability and loss. A feature that is active on every CLS row fires on few of all rows and
        yet detects nothing.
        """
        frame, rows = self.frame, []
        for r in frame[frame["role"] == "found"].to_dict("records"):
            row = {
                "feature": feature_text(r["layer"], r["feature"], self.names),
                "rows %": f"{100 * r['rate']:.1f}",
                "images %": f"{100 * r['image_rate']:.1f}",
                "CLS %": "" if isnan(r["cls_rate"]) else f"{100 * r['cls_rate']:.1f}",
                "scale": f"{r['scale']:g}",
                "predicted": f"{r['predicted']:+.3f}",
                "Δ logit contrast": change_text(r, "contrast", 1, 3),
                "beyond random": change_text(r, "contrast_beyond", 1, 3),
                "Δ probability (points)": change_text(r, "probability", 100, 2),
            }
            if "loss" in self.measures:
                row["Δ top-1 (points)"] = f"{100 * r['top1']:+.2f}"
                row["Δ loss"] = change_text(r, "loss", 1, 4)
            rows.append(row)
        return pd.DataFrame(rows)

    def notes(self) -> Sequence[str]:
        """How well prediction and measurement agree, and what scaling does."""
        return [self.agreement_text(), edits_text("scale")]

    def agreement_text(self) -> str:
        """A sentence on how well prediction and measurement agree."""
        a = self.agreement
        if a is None or isnan(a.value):
            return "Too few features to say whether prediction and measurement agree."
        return (
            f"Spearman of predicted and measured change of the logit contrast, suppressed, over "
            f"{len(self.candidates)} features: {a.value:.2f} ({a.value.low:.2f} to "
            f"{a.value.high:.2f} over images of the measuring half, predictions held); predictions "
            f"permuted: {a.floor.low:.2f} to {a.floor.high:.2f}. Slope of measured on "
            f"predicted: {self.slope.text('.2f')}."
        )

    def metrics(self) -> list[Metric]:
        """Every change of the features found, with the mean of their random features as floor, and
        the change minus that mean ("_beyond_random"); the agreement and slope of prediction and
        measurement."""
        metrics = [
            Metric(f"unsteered_{name}", value, STEERED_UNITS[name], self.n)
            for name, value in self.baseline.items()
        ]
        for r in self.frame[self.frame["role"] == "found"].to_dict("records"):
            for measure in self.measures:
                name = f"{r['layer']}:{r['feature']}_scale_{r['scale']:g}_delta_{measure}"
                floor = self.random_mean(r["candidate"], r["scale"], measure)
                unit, beyond = STEERED_UNITS[measure], f"{measure}_beyond"
                change, past = (Interval.from_columns(r, column) for column in (measure, beyond))
                metrics += [
                    change.metric(name, unit, self.n, floor, 0.0),
                    past.metric(f"{name}_beyond_random", unit, self.n),
                ]
        metrics.append(self.slope.metric("predicted_measured_slope", "fraction", self.n))
        if self.agreement is not None:
            metrics += self.agreement.metrics("predicted_measured_spearman", self.n)
        return metrics

    def figure(self) -> go.Figure:
        """Measured changes of every feature found, beside its prediction and its random ones."""
        from vit_clt.analysis.steering.search_figure import search_figure

        return search_figure(self)

    def page(self) -> str:
        """How to read it, the figure, and the numbers."""
        from vit_clt.analysis.steering.report import steering_report

        trajectory = (
            "stream inputs, error nodes; direct effects (attention held, norms differentiated) and "
            "shares of rows, images and CLS rows on which a feature is active on the teacher's"
        )
        title = f"Which features move “{self.target}”?"
        return steering_report(self, title, {"Trajectory": trajectory})
