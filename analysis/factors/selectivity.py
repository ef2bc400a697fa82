"""Selectivity: which of two factors each feature depends on, and sets of features of one kind.

`vit_clt.analysis.factors.selectivity_study` measures it.
"""

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
    """The dependence of every feature of some layers on two factors of the images."""

    name = "selectivity"

    frame: pd.DataFrame
    """One row per layer and feature. Columns: active (share of images), rate (share of token rows),
    eta2_a, eta2_b, eta2_label, eta2_pair, partial_inter, share_a, share_b, share_inter, share_label
    (NaN where not tested), p_... (the p-value of each test by itself), and kind."""
    floors: dict[str, float]
    """By test, the value that no feature reaches in 95 % of the draws."""
    factors: tuple[str, str]
    """Names of the factors a and b."""
    region: Region
    layers: list[int]
    l0: float
    """Active features per row of the region and layer."""
    data: str
    split: str | None
    n: int
    draws: int
    seed: int

    @property
    def kinds(self) -> list[str]:
        """The kinds of features, as `vit_clt.analysis.factors.selectivity_study` defines them."""
        return [*self.factors, "mixed", "pair", "label", "none", "rare"]

    def features(
        self, *kinds: str, layers: Iterable[int] | None = None, most: int | None = None
    ) -> FeatureSet:
        """The features of these kinds by layer; layers without any are left out.

        Args:
            *kinds: some of `self.kinds`.
            layers: layers to choose from; all by default.
            most: largest number of features of a layer, those with the largest eta2_pair; all by
                default.

        Raises:
            InputError: a kind is unknown, a layer was not measured, `most` is below 1, or there is
                no such feature.
        """
        if most is not None and most < 1:
            raise InputError("most", f"is {most}; expected at least 1.")
        for kind in kinds:
            check_choice("kind", kind, self.kinds)
        searched = self.layers if layers is None else list(layers)
        if unknown := set(searched) - set(self.layers):
            raise InputError("layers", f"contains {min(unknown)}; expected some of {self.layers}.")
        matches = self.frame[self.frame["kind"].isin(kinds) & self.frame["layer"].isin(searched)]
        if matches.empty:
            raise InputError(f"no feature of layers {searched} is of kind {' or '.join(kinds)}.")
        ranked = matches.sort_values(["eta2_pair", "feature"], ascending=[False, True])
        return {
            int(s): torch.tensor(sorted(in_layer["feature"][:most]))
            for s, in_layer in ranked.groupby("layer")
        }

    def matched(self, group: FeatureSet, seed: int = 0, *, apart: bool = True) -> FeatureSet:
        """Random features, as many of each layer as in the group, of equal rate (`equal_rate`).

        The features of the group are taken in random order, and each takes one of the features that
        remain. The rate of a feature is the share of the region's token rows on which it is active.

        Args:
            group: the features to match.
            seed: seed of the draw.
            apart: draw only from features outside the group. With False all features that fire are
                drawn from, which is needed where the group is most of a layer; the studies report
                the overlap of both.

        Raises:
            InputError: a layer has too few features to draw from.
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
        """Number of features of each kind, one row per layer."""
        table = pd.crosstab(self.frame["layer"], self.frame["kind"])
        return table.reindex(columns=self.kinds, fill_value=0).reset_index()

    def facts(self) -> Facts:
        """Images, region and settings; codes come from the teacher trajectory."""
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
        """The images, the token rows, and how features are counted."""
        return (
            f"{self.data}, N = {self.n}, {REGION_NAMES[self.region]}, teacher trajectory, "
            f"L0 = {self.l0:.1f}: features by what they tell of {' and '.join(self.factors)}; "
            f"floors of {self.draws} draws, seed {self.seed}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and feature; see `frame`."""
        return self.frame

    def shown(self) -> pd.DataFrame:
        """Number of features of each kind, one row per layer."""
        return self.counts()

    def metrics(self) -> list[Metric]:
        """Numbers of features ("layer_{s}_{region}_{kind}") and floors of tests."""
        counts = [
            Metric(f"layer_{row['layer']}_{self.region}_{kind}", int(row[kind]), "count", self.n)
            for row in self.counts().to_dict("records")
            for kind in self.kinds
        ]
        return counts + [
            Metric(f"floor_{self.region}_{test}", value, "fraction", self.n)
            for test, value in self.floors.items()
        ]

    def figure(self) -> go.Figure:
        """Number of features of each kind, and the variance that factors explain, by layer."""
        from vit_clt.analysis.factors.selectivity_figure import selectivity_figure

        return selectivity_figure([self])
