"""Features by what they tell of two factors (`vit_clt.analysis.factors.selectivity_study`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vit_clt.analysis.factors.sets import FeatureSet
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.equal_rate import equal_rate
from vit_clt.choices import Region, check_choice
from vit_clt.errors import InputError
from vit_clt.hooks.rows import REGION_NAMES
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Selectivity(Study):
    """Every feature of the layers asked for."""

    name = "selectivity"

    frame: pd.DataFrame
    """One row per layer and feature: active (share of images), rate (share of token rows), eta2_a,
    eta2_b, eta2_label, eta2_pair, partial_inter, share_a, share_b, share_inter, share_label (NaN
    where not tested), p_... of each test by itself, and kind."""
    floors: dict[str, float]
    """Per test, what no feature reaches in 95 % of the draws."""
    factors: tuple[str, str]
    """What a and b are called."""
    region: Region
    layers: list[int]
    l0: float
    """Active features a row of that region and layer."""
    data: str
    split: str | None
    n: int
    draws: int
    seed: int

    @property
    def kinds(self) -> list[str]:
        """What features can be called, from what they tell to nothing."""
        return [*self.factors, "mixed", "pair", "label", "none", "rare"]

    def features(
        self, *kinds: str, layers: Iterable[int] | None = None, most: int | None = None
    ) -> FeatureSet:
        """The features of these kinds, by layer; layers without any are left out.

        Args:
            kinds: what they are called.
            layers: of which layers; all by default.
            most: so many of a layer, those with the largest eta2_pair; all by default.

        Raises:
            InputError: an unknown kind, a layer that was not asked for, `most` below 1, or no such
                feature.
        """
        if most is not None and most < 1:
            raise InputError("most", f"is {most}; expected at least 1.")
        for kind in kinds:
            check_choice("kind", kind, self.kinds)
        chosen = self.layers if layers is None else list(layers)
        if unknown := set(chosen) - set(self.layers):
            raise InputError("layers", f"contains {min(unknown)}; expected some of {self.layers}.")
        found = self.frame[self.frame["kind"].isin(kinds) & self.frame["layer"].isin(chosen)]
        if found.empty:
            raise InputError(f"no feature of layers {chosen} is of kind {' or '.join(kinds)}.")
        ranked = found.sort_values(["eta2_pair", "feature"], ascending=[False, True])
        return {
            int(s): torch.tensor(sorted(own["feature"][:most]))
            for s, own in ranked.groupby("layer")
        }

    def matched(self, group: FeatureSet, seed: int = 0, *, apart: bool = True) -> FeatureSet:
        """As many features of each layer, of equal rate (`equal_rate`).

        Each feature of the group, in random order, takes one of those still left; its rate is the
        share of the region's token rows on which it is active.

        Args:
            group: what is matched.
            seed: of the draw.
            apart: draw from features outside the group; else from all that fire, where the group
                is most of a layer. The studies report how far the two overlap.

        Raises:
            InputError: a layer has too few other features that fire.
        """
        rng = np.random.default_rng(seed)
        drawn: dict[int, Tensor] = {}
        for s, features in group.items():
            rate = self.frame[self.frame["layer"] == s]["rate"].to_numpy()
            others = np.setdiff1d(np.flatnonzero(rate), features.numpy() if apart else [])
            if len(others) < len(features):
                raise InputError(
                    f"layer {s} has {len(others)} other features that fire; expected at least "
                    f"{len(features)}, as many as in the group (apart=False draws from all)."
                )
            taken: list[int] = []
            for feature in rng.permutation(features.numpy()).tolist():
                taken += equal_rate(rate, feature, np.setdiff1d(others, taken), 1, rng)
            drawn[s] = torch.tensor(sorted(taken))
        return drawn

    def counts(self) -> pd.DataFrame:
        """Features of each kind, a row per layer."""
        table = pd.crosstab(self.frame["layer"], self.frame["kind"])
        return table.reindex(columns=self.kinds, fill_value=0).reset_index()

    def facts(self) -> Facts:
        """Codes of the teacher's own rows, in one region."""
        return Facts(
            self.data,
            self.n,
            self.region,
            "teacher",
            self.l0,
            split=self.split,
            seed=self.seed,
            more={"factors": list(self.factors), "layers": self.layers, "draws": self.draws},
        )

    def caption(self) -> str:
        """Which images and rows, and how features are counted."""
        return (
            f"{self.data}, N = {self.n}, {REGION_NAMES[self.region]}, teacher trajectory, "
            f"L0 = {self.l0:.1f}: features by what they tell of {' and '.join(self.factors)}; "
            f"floors of {self.draws} draws, seed {self.seed}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per feature: `frame`."""
        return self.frame

    def shown(self) -> pd.DataFrame:
        """Features of each kind, a row per layer."""
        return self.counts()

    def metrics(self) -> list[Metric]:
        """Features of each kind and layer, named "layer_{s}_{region}_{kind}"; floors of tests."""
        found = [
            Metric(f"layer_{row['layer']}_{self.region}_{kind}", int(row[kind]), "count", self.n)
            for row in self.counts().to_dict("records")
            for kind in self.kinds
        ]
        return found + [
            Metric(f"floor_{self.region}_{test}", value, "fraction", self.n)
            for test, value in self.floors.items()
        ]

    def figure(self) -> go.Figure:
        """Features of each kind, and the variance that factors explain, by layer."""
        from vit_clt.analysis.factors.selectivity_figure import selectivity_figure

        return selectivity_figure([self])
