"""The result of an ablation: readings of one set of kept sources and of the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from vit_clt.analysis.ablations.result import AblationStudy
from vit_clt.analysis.ablations.term_sets import REFERENCES
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.readings import Measure, Reading
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class Ablation(AblationStudy):
    """Readings of the model with one set of kept sources, and of the references."""

    name = "kept"

    kept_at: dict[int, list[int]]
    """By target, the source layers whose terms stayed."""

    @property
    def reading(self) -> Reading:
        """Reading of the model with the kept set."""
        return self.readings["kept"]

    @property
    def bias_only(self) -> Reading:
        """Reading with y^ = b_dec (and a skip's term): all sources dropped, nothing filled in."""
        return self.readings["bias_only"]

    @property
    def floor_zero(self) -> Reading:
        """Reading with the model's own MLP rows at the targets set to zero."""
        return self.readings["floor_zero"]

    @property
    def floor_mean(self) -> Reading:
        """Reading with the model's own MLP rows at the targets at their mean over the images."""
        return self.readings["floor_mean"]

    @property
    def full(self) -> Reading:
        """Reading with every term kept."""
        return self.readings["full"]

    @property
    def original(self) -> Reading:
        """Reading of the unaltered model."""
        return self.readings["original"]

    @property
    def top1(self) -> Interval:
        """Accuracy, a fraction."""
        return self.reading.top1

    @property
    def low(self) -> float:
        """Lower end of the accuracy's 95 % interval."""
        return self.top1.low

    @property
    def high(self) -> float:
        """Upper end of the accuracy's 95 % interval."""
        return self.top1.high

    @property
    def loss(self) -> Interval:
        """Mean cross-entropy, in nats."""
        return self.reading.loss

    @property
    def loss_low(self) -> float:
        """Lower end of the loss's 95 % interval."""
        return self.loss.low

    @property
    def loss_high(self) -> float:
        """Upper end of the loss's 95 % interval."""
        return self.loss.high

    @property
    def n(self) -> int:
        """Number of images."""
        return self.reading.n

    @property
    def kept(self) -> list[int]:
        """Source layers whose terms stayed at the (deepest) target."""
        return self.kept_at[max(self.kept_at)]

    def recovered(
        self, floor: Literal["floor_zero", "floor_mean"] = "floor_mean", measure: Measure = "top1"
    ) -> Interval:
        """The recovered share (value - floor) / (full - floor) of a measure, with its interval.

        It is NaN where the interval of full - floor contains 0.
        """
        return self.readings.recovered("kept", "full", floor, measure)

    @property
    def sources(self) -> str:
        """The kept sources as text: "5 7", of several targets "6: 5 6 | 7: 5 7"."""
        return sources_text(self.kept_at)

    def source_facts(self) -> dict[str, Any]:
        """The kept sources by target."""
        return {"kept": self.kept_at}

    def caption(self) -> str:
        """One sentence on the kept sources and on what they were read on."""
        layers = ", ".join(map(str, self.targets))
        return (
            f"{self.data}, N = {self.n}, layer {layers}, {self.tokens} rows, teacher trajectory, "
            f"sources kept: {self.sources or 'none'}, dropped terms: {self.fill}, readout: "
            f"{self.readout}, L0 {self.l0:.1f}, seed {self.seed}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for the kept set and one per reference: accuracy and loss with intervals."""
        names = ("kept", *REFERENCES)
        return pd.DataFrame({"version": name, **self.readings[name].columns()} for name in names)

    def shown(self) -> pd.DataFrame:
        """A row for the kept set, and one per reference."""
        from vit_clt.analysis.ablations.tables import ablation_table

        return ablation_table(self)

    def metrics(self) -> list[Metric]:
        """Accuracy and loss of the kept set and the references, beside floor and baseline."""
        return [
            metric
            for name in ("kept", *REFERENCES[1:])
            for metric in self.readings[name].metrics(name, self.floor_mean, self.original)
        ]

    def figure(self) -> go.Figure:
        """Accuracy and loss of the kept set among the references, with intervals."""
        from vit_clt.analysis.ablations.ablation_figure import kept_set_figure

        return kept_set_figure(self)


def sources_text(sources_at: Mapping[int, Sequence[int]]) -> str:
    """Sources per target as text: "7 5", of several targets "6: 6 5 | 7: 7 5"."""
    texts = {target: " ".join(map(str, sources)) for target, sources in sources_at.items()}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return " | ".join(f"{target}: {text}" for target, text in texts.items())
