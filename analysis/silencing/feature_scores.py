"""What do single features do? The result of `feature_effects`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.silencing.effects import READING_UNITS, SilencingEffects
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class FeatureEffects(Study):
    """Effects of silencing one feature at a time, on every y_l and on the output."""

    name = "feature_effects"

    effects: SilencingEffects

    @property
    def names(self) -> list[str]:
        """Layer and number of every feature, as "3/17"."""
        return [f"{each.layer}/{each.feature}" for each in self.effects.silenced]

    def facts(self) -> Facts:
        """The facts of the effects."""
        return self.effects.facts()

    def caption(self) -> str:
        """One sentence on what `shown` lists and how it was measured."""
        return (
            "what silencing one feature changes, as a share of the variance of y_l on "
            f"{self.effects.tokens} rows and at the output, {self.effects.measured_on()}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per number: layer, feature, target, measure, unit, score and its ends."""
        return pd.DataFrame(
            {"layer": each.layer, "feature": each.feature, **cell}
            for i, each in enumerate(self.effects.silenced)
            for cell in self.effects.cells(i)
        )

    def shown(self) -> pd.DataFrame:
        """One row per feature: its effects on every layer and on the output."""
        matrix = self.effects.on_targets.matrix
        rows = []
        for i, name in enumerate(self.names):
            row = {"feature": name}
            row |= {f"layer {l}": "" if v != v else f"{v:.2g}" for l, v in enumerate(matrix[:, i])}
            for reading, values in self.effects.on_output.items():
                row[f"{reading} ({READING_UNITS[reading]})"] = f"{values[:, i].mean():+.2g}"
            rows.append(row)
        return pd.DataFrame(rows)

    def notes(self) -> Sequence[str]:
        """The error of first-order effects."""
        return [] if self.effects.error is None else [self.effects.error.text()]

    def metrics(self) -> list[Metric]:
        """Every number of `to_frame`, named feature_{layer}_{feature}_to_{target}_{measure}."""
        return [
            Interval(r.score, r.low, r.high).metric(
                f"feature_{r.layer}_{r.feature}_to_{r.target}_{r.measure}", r.unit, self.effects.n
            )
            for r in self.to_frame().itertuples()
        ]

    def figure(self) -> go.Figure:
        """Effects on y_l as a heatmap, beside those on the output as bars."""
        from vit_clt.analysis.silencing.figure import feature_effects_figure

        return feature_effects_figure(self)
