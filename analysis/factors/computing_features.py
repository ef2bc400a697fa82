"""The study of features that compute: what they depend on, and what changing them does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vit_clt.analysis.factors.clamping import Clamp
from vit_clt.analysis.factors.selectivity import Selectivity
from vit_clt.analysis.factors.suppression import Suppression
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.choices import Region
from vit_clt.errors import InputError
from vit_clt.hooks.rows import REGION_NAMES
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class ComputingFeatures(Study):
    """Selectivity of the features of one CLT, and the effects of changing groups of them.

    Features are chosen on some images and changed on others.

    Raises:
        InputError: there is no selectivity, no suppression, or no clamping.
    """

    name = "features"
    extra_files = tuple(
        f"{table}.{kind}" for table in ("counts", "suppressed", "clamped") for kind in ("csv", "md")
    )

    selectivities: Mapping[Region, Selectivity]
    """Selectivity by region; L0 and seed of the report are those of the first."""
    suppressed: Mapping[str, Suppression]
    """Suppressions by the name of the group."""
    clamped: Mapping[str, Clamp]
    """Clampings by the name of the group."""
    clt: str
    """Folder or Hub id of the CLT."""

    def __post_init__(self) -> None:
        for name in ("selectivities", "suppressed", "clamped"):
            if not getattr(self, name):
                raise InputError(name, "is empty; expected at least one result.")

    @property
    def _first(self) -> Selectivity:
        return next(iter(self.selectivities.values()))

    @property
    def _edited(self) -> Suppression:
        return next(iter(self.suppressed.values()))

    def facts(self) -> Facts:
        """Facts of the images that features are changed on; "chosen_on" names the images that
        selectivity was measured on."""
        return Facts(
            self._edited.data,
            self._edited.n,
            " ".join(self.selectivities),
            "teacher for selectivity, stream with error nodes for edits",
            self._first.l0,
            split=self._edited.split,
            seed=self._first.seed,
            more={"chosen_on": f"{self._first.data}, N = {self._first.n}", "clt": self.clt},
        )

    def caption(self) -> str:
        """The CLT, and which images features are chosen and changed on."""
        return (
            f"CLT {Path(self.clt).name}, L0 {self._first.l0:.1f} "
            f"({REGION_NAMES[self._first.region]}); chosen on {self._first.data}, "
            f"{self._first.n} images, changed on {self._edited.data}, N = {self._edited.n}; "
            f"seed {self._first.seed}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per region, layer and feature."""
        return pd.concat(
            one.to_frame().assign(rows=REGION_NAMES[region])
            for region, one in self.selectivities.items()
        )

    def shown(self) -> pd.DataFrame:
        """Number of features of each kind, one row per region and layer."""
        return pd.concat(
            one.counts().assign(rows=REGION_NAMES[region])
            for region, one in self.selectivities.items()
        )

    def extras(self) -> Iterable[tuple[str, str]]:
        """Three tables: numbers of features of each kind, suppressions, and clampings."""
        from vit_clt.analysis.reporting.tables import csv_table, markdown_table

        suppressed, clamped = (
            pd.concat(
                one.to_frame().assign(group=name, in_group=one.n_features, overlap=one.overlap)
                for name, one in results.items()
            )
            for results in (self.suppressed, self.clamped)
        )
        tables = {"counts": self.shown(), "suppressed": suppressed, "clamped": clamped}
        texts = {}
        for name, table in tables.items():
            texts[f"{name}.csv"] = csv_table(table)
            texts[f"{name}.md"] = markdown_table(table, self.caption())
        return texts.items()

    def metrics(self) -> list[Metric]:
        """Metrics of every part; those of edits start with "suppressed_{group}_" or
        "clamped_{group}_"."""
        metrics = [metric for one in self.selectivities.values() for metric in one.metrics()]
        for kind, results in (("suppressed", self.suppressed), ("clamped", self.clamped)):
            for name, one in results.items():
                stem = f"{kind}_{name}_".replace(", ", "_").replace(" ", "_")
                metrics += [replace(metric, name=stem + metric.name) for metric in one.metrics()]
        return metrics

    def figure(self) -> go.Figure:
        """Number of features of each kind by layer, one row of panels per region."""
        from vit_clt.analysis.factors.selectivity_figure import selectivity_figure

        return selectivity_figure(list(self.selectivities.values()))

    def page(self) -> str:
        """The page with every table and figure."""
        from vit_clt.analysis.reporting.page import Section, render_report

        kinds = Section("Which features tell of what", (), [self.shown()], [self.figure()])
        edits = [
            Section(f"{title}: {name}", tables=[one.to_frame()], figures=[one.figure()])
            for title, results in (
                ("Off", self.suppressed),
                ("Set to another digit's", self.clamped),
            )
            for name, one in results.items()
        ]
        return render_report("Features that compute", self.caption(), [kinds, *edits])
