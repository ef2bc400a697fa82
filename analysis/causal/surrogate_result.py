"""The result of `vit_clt.analysis.causal.surrogate_study.surrogate_causality`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from vit_clt.analysis.causal.effect_agreement import EffectAgreement, Measure
from vit_clt.analysis.causal.interventions import Intervention
from vit_clt.analysis.causal.surrogate_effects import VIT
from vit_clt.analysis.causal.targets import Path
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.names import LayerSet, layers_text
from vit_clt.analysis.stats.readings import Readings, accuracy_and_loss
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

Effect = Literal["loss", "logits"]
ALL_SETS = "all"
"""The kind of sets that stands for all of them together."""
EXACT: dict[Measure, float] = {
    "pearson": 1.0,
    "slope": 1.0,
    "relative_error": 0.0,
    "spearman": 1.0,
}
"""What each measure of agreement is where the effects are the same."""


@dataclass(frozen=True)
class Compared:
    """How far effects in one model agree with those in the ViT, over sets of one kind."""

    model: str
    """A surrogate, or "first order"."""
    intervention: Intervention
    path: Path
    effect: str
    """What the intervention changes: "loss" or "logits"."""
    sets: str
    """Kind of the sets of layers: "single", "range", "other", or "all" of them."""
    n_sets: int
    agreement: Mapping[Measure, EffectAgreement]


@dataclass(frozen=True)
class SurrogateCausality(Study):
    """Agreement of effects in surrogates with effects in the ViT, and the effects themselves."""

    name = "surrogate_causality"

    compared: list[Compared]
    mean_effects: dict[tuple[Intervention, Path], dict[str, dict[LayerSet, Interval]]]
    """Mean change of the loss over images in nats, by model and set of layers."""
    unaltered: Readings
    """Readings of "ViT" and of every surrogate, where nothing is overwritten."""
    surrogates: list[str]
    """Names of the CLT, which is the first, and of its rivals."""
    l0: dict[str, float]
    """Active features a token row and layer in each unaltered surrogate, over all rows."""
    readout: str
    model: str
    data: str
    split: str | None
    n: int
    seed: int
    """Seed of donors, permutations and bootstraps."""

    @property
    def interventions(self) -> list[Intervention]:
        """What was done, in order."""
        return list(dict.fromkeys(each for each, _ in self.mean_effects))

    def agreement(
        self,
        measure: Measure = "pearson",
        *,
        model: str | None = None,
        intervention: Intervention | None = None,
        path: Path = "total",
        effect: Effect = "loss",
        sets: str = ALL_SETS,
    ) -> EffectAgreement:
        """One measure of agreement; by default of the CLT, under the first intervention.

        Where all sets are of one kind, "all" stands for that kind.

        Raises:
            KeyError: it was not measured.
        """
        found = self.comparison(model, intervention, path, effect, sets)
        return found.agreement[measure]

    def comparison(
        self,
        model: str | None = None,
        intervention: Intervention | None = None,
        path: Path = "total",
        effect: Effect = "loss",
        sets: str = ALL_SETS,
    ) -> Compared:
        """All measures of one comparison, as `agreement` chooses it."""
        wanted = (model or self.surrogates[0], intervention or self.interventions[0], path, effect)
        of_sets = {
            c.sets: c
            for c in self.compared
            if (c.model, c.intervention, c.path, c.effect) == wanted
        }
        return next(iter(of_sets.values())) if sets == ALL_SETS else of_sets[sets]

    def facts(self) -> Facts:
        """The images, and what was done on them."""
        first = self.interventions[0]
        one = len(self.interventions) == 1
        return Facts(
            self.data,
            self.n,
            first.ablated if one else ", ".join({e.ablated: 0 for e in self.interventions}),
            "stream",
            self.l0,
            split=self.split,
            fill=first.fill if one else ", ".join({e.fill: 0 for e in self.interventions}),
            seed=self.seed,
            more={
                "interventions": list(map(str, self.interventions)),
                "readout": self.readout,
                "model": self.model,
            },
        )

    def caption(self) -> str:
        """One sentence on what was compared."""
        active = ", ".join(f"{name} {value:.1f}" for name, value in self.l0.items())
        return (
            f"{self.data}, N = {self.n}, every MLP replaced (all rows, stream inputs), "
            f"{' / '.join(map(str, self.interventions))} overwritten, readout: {self.readout}, "
            f"seed {self.seed}; L0: {active}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per number: measures of agreement, then mean effects on the loss of every set.

        Columns: model, site, fill, ablated, path, sets (a kind of sets, or the layers of one),
        effect, measure, unit, value, low, high, n, n_sets, floor_low and floor (2.5 and 97.5 %
        quantiles of permuted effects), baseline (what equal effects give; for mean effects that of
        the ViT).
        """
        rows: list[dict[str, Any]] = []
        for c in self.compared:
            for measure, found in c.agreement.items():
                rows.append(
                    {
                        **_key(c.model, c.intervention, c.path),
                        "sets": c.sets,
                        "effect": c.effect,
                        "measure": measure,
                        "unit": "fraction",
                        **found.value.columns("value"),
                        "n": self.n,
                        "n_sets": c.n_sets,
                        "floor_low": found.floor.low,
                        "floor": found.floor.high,
                        "baseline": EXACT[measure],
                    }
                )
        for (each, path), by_model in self.mean_effects.items():
            for model, by_set in by_model.items():
                for layers, effect in by_set.items():
                    rows.append(
                        {
                            **_key(model, each, path),
                            "sets": layers_text(layers),
                            "effect": "loss",
                            "measure": "mean",
                            "unit": "nats",
                            **effect.columns("value"),
                            "n": self.n,
                            "n_sets": 1,
                            "baseline": float(by_model[VIT][layers]),
                        }
                    )
        frame = pd.DataFrame(rows)
        return frame.rename(columns={"value_low": "low", "value_high": "high"})

    def shown(self) -> pd.DataFrame:
        """One row per comparison over all sets, and of the loss also over each kind of sets."""
        rows = []
        for c in self.compared:
            if c.effect == "logits" and c is not self.comparison(
                c.model, c.intervention, c.path, "logits"
            ):
                continue
            row: dict[str, Any] = {"model": c.model}
            if len(self.interventions) > 1:
                row["overwritten"] = str(c.intervention)
            row |= {"path": c.path, "effect on": c.effect, "sets": f"{c.sets} ({c.n_sets})"}
            for measure, title in TITLES.items():
                found = c.agreement.get(measure)
                row[title] = "" if found is None else _text(found.value)
                if measure == "pearson":
                    row["permuted"] = "" if found is None else f"{found.floor.high:.3f}"
            rows.append(row)
        return pd.DataFrame(rows)

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """What the unaltered models answer."""
        rows = []
        for model in self.unaltered.names:
            reading = self.unaltered[model]
            rows.append(
                {
                    "unaltered": model,
                    "top-1 % / loss": accuracy_and_loss(reading.top1, reading.loss),
                }
            )
        return {"Unaltered ViT and surrogates (top-1 in percent, loss in nats)": pd.DataFrame(rows)}

    def notes(self) -> Sequence[str]:
        """Sentences on how to read the measures."""
        return [
            "in brackets 95 % of bootstrap draws over images; permuted: what 97.5 % of deals of "
            "the effects to the sets stay below",
            "slope through the origin, of effects in the model on effects in the ViT; relative "
            "error 0 is exact, 1 is that of predicting no effect",
            "both models hold the same values where they are overwritten: the more MLPs a set "
            "holds the more alike they are by construction, so that single layers say most",
        ]

    def metrics(self) -> list[Metric]:
        """Every number of `to_frame`, named "{model}_{site}_{fill}_{ablated}_{path}_...".

        A floor is the quantile of permuted effects on the side of agreement.
        """
        metrics = []
        for r in self.to_frame().itertuples():
            floor = r.floor_low if r.measure == "relative_error" else r.floor
            name = (r.model, r.site, r.fill, r.ablated, r.path, r.sets, r.effect, r.measure)
            metrics.append(
                Interval(r.value, r.low, r.high).metric(
                    "_".join(name).replace(" ", "_"),
                    r.unit,
                    r.n,
                    None if isnan(floor) else floor,
                    r.baseline,
                )
            )
        return metrics

    def figure(self) -> go.Figure:
        """Mean effects of each set in every model against those in the ViT; and the agreement."""
        from vit_clt.analysis.causal.surrogate_figure import surrogate_figure

        return surrogate_figure(self)


TITLES: dict[Measure, str] = {
    "pearson": "Pearson",
    "slope": "slope",
    "relative_error": "relative error",
    "spearman": "Spearman",
}
"""Headings of the measures of agreement."""


def _key(model: str, each: Intervention, path: Path) -> dict[str, str]:
    return {
        "model": model,
        "site": each.site,
        "fill": each.fill,
        "ablated": each.ablated,
        "path": path,
    }


def _text(value: Interval) -> str:
    return "undefined" if isnan(value) else value.text(".3f")
