"""The result of `vit_clt.analysis.high_norm.study.high_norm_rows`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from vit_clt.analysis.high_norm.marked import MarkedImage
from vit_clt.analysis.high_norm.rule import HighNormRule
from vit_clt.analysis.high_norm.tables import LEAST_ROWS
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.tables import csv_table
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FLOORS = {
    "high_norm": "random",
    "ordinary": "patch_without_random",
    "all_without_high_norm": "all_without_random",
}
"""The kind with random rows in the place of the high-norm ones."""
_BASELINES = {"ordinary": "patch", "all_without_high_norm": "all"}
"""The kind with the high-norm rows."""
_LISTED = 24


@dataclass(frozen=True)
class HighNorm(Study):
    """Rows of outlying norm at each layer, and what they do to a CLT."""

    name = "high_norm"
    extra_files = ("map.csv", "features.csv")

    frame: pd.DataFrame
    """One row per layer and kind of rows (`rule.KINDS`). Columns: layer, kind, rows (their number),
    row_share (of all rows); median and largest norm of the residual stream after the block, of x_l
    and of y_l (stream_median, stream_max, ...); spread_share, the share of these rows in the sum of
    ||y - mean||^2 over all rows, around the mean of all rows, with its 95 % bootstrap interval over
    images; and with a CLT: error_share, the same of ||y - y^||^2; fvu, 1 - R^2 on these rows around
    their own mean; l0, active features a row; silent, the share of features that are active on
    none of them. NaN where there are no such rows."""
    limits: Float[np.ndarray, " layer"]
    """Norm of the stream above which a patch row is high-norm."""
    medians: Float[np.ndarray, " layer"]
    """Median norm of the stream on patch rows."""
    image_share: Float[np.ndarray, "layer down across"]
    """Share of images in which each patch is high-norm."""
    features: pd.DataFrame | None
    """As of `tables.features_frame`; None without a CLT."""
    counts: pd.DataFrame | None
    """As of `tables.feature_counts`; None without a CLT."""
    marked: list[MarkedImage]
    rule: HighNormRule
    model: str
    clt: str | None
    data: str
    split: str | None
    n: int
    seed: int
    """Seed of the random rows and of the bootstrap."""

    @property
    def n_layers(self) -> int:
        """Number of layers of the ViT."""
        return len(self.limits)

    @property
    def kinds(self) -> list[str]:
        """The kinds of rows that were measured."""
        return list(dict.fromkeys(self.frame["kind"]))

    def by_layer(self, kind: str, column: str) -> Float[np.ndarray, " layer"]:
        """A column of `frame` for one kind of rows."""
        return self.frame.loc[self.frame["kind"] == kind, column].to_numpy(dtype=float)

    def to_frame(self) -> pd.DataFrame:
        """`frame`: every number by layer and kind of rows."""
        return self.frame

    def facts(self) -> Facts:
        """The images, the rule, and the mean L0 of all patch rows over layers."""
        l0 = None if self.clt is None else float(np.nanmean(self.by_layer("patch", "l0")))
        tokens = [kind for kind in ("cls", "register", "patch") if kind in self.kinds]
        return Facts(
            self.data,
            self.n,
            " ".join(tokens),
            "teacher",
            l0,
            split=self.split,
            seed=self.seed,
            more={
                "model": self.model,
                "clt": self.clt,
                "rule": self.rule.text(),
                "floor": "as many random patch rows",
            },
        )

    def caption(self) -> str:
        """One sentence on what was measured, the rule, and the floor."""
        clt = "no CLT" if self.clt is None else f"CLT {self.clt}, L0 {self.facts().l0:.1f}"
        return (
            f"{self.data}, N = {self.n}, model {self.model}, {clt}, teacher trajectory; high-norm: "
            f"{self.rule.text()}; floor: as many random patch rows, seed {self.seed}"
        )

    def shown(self) -> pd.DataFrame:
        """One row per layer, as text; in brackets the floor."""
        high, floor = "high_norm", "random"
        columns = {
            "layer": range(self.n_layers),
            "high-norm rows": [f"{v:.0f}" for v in self.by_layer(high, "rows")],
            "of patch rows": [
                f"{v:.3%}" for v in self.by_layer(high, "rows") / self.by_layer("patch", "rows")
            ],
            "median norm": _text(self.medians, ".3g"),
            "limit": _text(self.limits, ".3g"),
            "largest norm": _text(self.by_layer("patch", "stream_max"), ".3g"),
            "share of ‖y − mean‖²": self._beside("spread_share", high, floor, ".2%"),
        }
        if self.clt is not None:
            columns |= {
                "share of the error": self._beside("error_share", high, floor, ".2%"),
                "FVU, patches": _text(self.by_layer("patch", "fvu"), ".4f"),
                "without them": self._beside("fvu", "ordinary", "patch_without_random", ".4f"),
                "L0 of them": self._beside("l0", high, floor, ".1f"),
            }
        return pd.DataFrame(columns)

    def _beside(self, column: str, kind: str, floor: str, form: str) -> list[str]:
        pairs = zip(self.by_layer(kind, column), self.by_layer(floor, column), strict=True)
        return ["none" if isnan(a) else f"{a:{form}} ({b:{form}})" for a, b in pairs]

    def kinds_shown(self) -> pd.DataFrame:
        """One row per layer and kind of rows, as text."""
        shown = self.frame[["layer", "kind"]].copy()
        shown["kind"] = shown["kind"].str.replace("_", " ")
        forms = {
            "rows": ".0f",
            **{f"{name}_{part}": ".3g" for name in ("stream", "x", "y") for part in _PARTS},
            "spread_share": ".3%",
            "error_share": ".3%",
            "fvu": ".4f",
            "l0": ".1f",
            "silent": ".1%",
        }
        for column, form in forms.items():
            if column in self.frame:
                title = _COLUMNS.get(column, column.replace("_", " "))
                shown[title] = _text(self.frame[column].to_numpy(dtype=float), form)
        return shown

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """How many features are active on high-norm rows beyond their base rate, and which most."""
        if self.counts is None or self.features is None or not self.counts["above"].any():
            return {}
        names = ("above", "mostly", "exclusive")
        counts = self.counts[["layer", "features"]].copy()
        for name in names:
            pairs = zip(self.counts[name], self.counts[f"{name}_random"], strict=True)
            counts[_COUNTS[name]] = [f"{a} ({b})" for a, b in pairs]
        tables = {"Features on high-norm rows (in brackets: on the random rows)": counts}
        most = self.features[self.features["share"] > 0.5]
        most = most.sort_values(["share", "patch_rows"], ascending=False).head(_LISTED)
        if len(most):
            listed = most[["layer", "feature", "patch_rows"]].copy()
            for column in ("share", "base", "rate_high_norm", "rate_ordinary", "rate_cls"):
                listed[_COLUMNS.get(column, column)] = _text(most[column].to_numpy(), ".2%")
            tables["The features of which most active patch rows are high-norm"] = listed
        return tables

    def notes(self) -> Sequence[str]:
        """How the columns are to be read."""
        notes = [
            "Shares of ‖y − mean‖² and of the squared error are of the sums over all rows, CLS and "
            "registers included, around the mean of all rows; y is the MLP's output, before "
            "LayerScale where a model has one. FVU is around the mean of the rows that it is of."
        ]
        if self.clt is not None:
            notes.append(
                f"Features count where they are active on at least {LEAST_ROWS} patch rows. Some "
                "are above the base rate by chance: read their number beside that of the random "
                "rows."
            )
        return notes

    def metrics(self) -> list[Metric]:
        """Shares, FVU and L0 by layer and kind, and counts of features; floors: random rows."""
        rows = {key: row for key, row in self.frame.set_index(["layer", "kind"]).iterrows()}
        metrics = []
        for (layer, kind), row in rows.items():
            floor, baseline = (
                rows.get((layer, other.get(kind)), {}) for other in (_FLOORS, _BASELINES)
            )
            metrics += [
                Metric(
                    f"{column}_{kind}_layer_{layer}",
                    row[column],
                    unit,
                    self.n,
                    row.get(f"{column}_low"),
                    row.get(f"{column}_high"),
                    floor.get(column),
                    baseline.get(column),
                )
                for column, unit in _UNITS.items()
                if column in row
            ]
        counts = [] if self.counts is None else self.counts.to_dict("records")
        return metrics + [
            Metric(
                f"features_{name}_layer_{count['layer']}",
                count[name],
                "count",
                self.n,
                floor=float(count[f"{name}_random"]),
                baseline=float(count["features"]),
            )
            for count in counts
            for name in ("above", "mostly", "exclusive")
        ]

    def extras(self) -> Iterable[tuple[str, str | bytes]]:
        """The map, and the features whose active rows are high-norm beyond their base rate."""
        places = np.argwhere(np.ones_like(self.image_share, dtype=bool))
        table = pd.DataFrame(places, columns=["layer", "row", "column"])
        yield "map.csv", csv_table(table.assign(image_share=self.image_share.flatten()))
        features = self.features
        if features is None:
            yield "features.csv", "layer,feature\n"
        else:
            yield "features.csv", csv_table(features[features["share"] > features["base"]])

    def figure(self) -> go.Figure:
        """Norms, shares, FVU and L0 by layer."""
        from vit_clt.analysis.high_norm.figure import high_norm_figure

        return high_norm_figure(self)

    def page(self) -> str:
        """The figure, where on the grid the rows lie, images with them, and the tables."""
        from vit_clt.analysis.high_norm.report import high_norm_page

        return high_norm_page(self)


_PARTS = ("median", "max")
_UNITS = {
    "row_share": "fraction",
    "spread_share": "fraction",
    "error_share": "fraction",
    "fvu": "fraction",
    "l0": "count",
    "silent": "fraction",
}
_COLUMNS = {
    "spread_share": "share of ‖y − mean‖²",
    "error_share": "share of the error",
    "fvu": "FVU",
    "l0": "L0",
    "silent": "silent features",
    "share": "high-norm",
    "base": "of all patch rows",
    "rate_high_norm": "active on high-norm rows",
    "rate_ordinary": "on ordinary patches",
    "rate_cls": "on CLS",
}
_COUNTS = {
    "above": "above the base rate",
    "mostly": "more than half",
    "exclusive": "all",
}


def _text(values: Iterable[float], form: str) -> list[str]:
    return ["none" if isnan(v) else f"{v:{form}}" for v in values]
