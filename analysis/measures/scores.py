"""The result of `feature_scores`: every unit's measures, and their means beside the floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval, mean_intervals
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

MIN_IMAGES = 10
"""A unit that is active on fewer images has no measures of images: they are NaN."""
MEASURES = {
    "monosemanticity": "monosemanticity",
    "morans_i": "Moran's I",
    "box_overlap": "inside boxes",
    "mask_overlap": "inside outlines",
    "class_auc": "class AUC",
    "stability": "stability",
    "matched": "matched share",
    "effect": "effect, logits",
}
"""Measures of single units, by their column, as tables call them."""
_UNITS = {"effect": "logits"}


@dataclass(frozen=True)
class Floors:
    """What units score that know nothing, where that is one number for all of them."""

    monosemanticity: float
    """Mean cosine of two images: of activations that are dealt to random images."""
    morans_i: float
    """Mean over all ways to deal a map's values to the patches."""
    class_auc: float = 0.5


@dataclass(frozen=True)
class FeatureScores(Study):
    """Measures of the units of several dictionaries: CLTs, and what they are compared with."""

    name = "feature_scores"

    units: pd.DataFrame
    """One row per unit. Columns: dictionary, layer, feature; images (on which it is active) and
    image_rate; monosemanticity, morans_i; box_overlap, mask_overlap, with _floor, and box_category
    and mask_category where the data have regions; class (named on training images) and class_auc
    (on these); stability with stability_floor and matched; effect. NaN where a measure is
    undefined: on fewer than 10 images, without labels, a second seed or class names; or where it
    was not asked for."""
    probes: pd.DataFrame
    """One row per dictionary, layer, class and k: auc, accuracy (balanced), auc_random,
    accuracy_random. Empty without training images."""
    absorption: pd.DataFrame
    """One row per CLT, target layer, parent and child: n, full, fraction, main (features), and
    full_random, fraction_random of random parents (one number a CLT and layer). Empty without a
    hierarchy."""
    floors: Floors
    clts: Sequence[str]
    """Names of the CLTs; the other dictionaries are floors."""
    l0: Mapping[str, float]
    """Active units a token row and layer, by dictionary."""
    ceiling: float
    """Mean AUC over classes of a probe of the whole embedding; NaN without training images."""
    embedded_by: str
    """The model whose embeddings say which images are alike."""
    seeds: Sequence[str]
    """Names of the CLTs of other seeds."""
    effect_images: int
    readout: str | None
    data: str
    split: str | None
    n: int
    trained_on: str | None
    """What probes were fitted on."""
    seed: int

    @property
    def dictionaries(self) -> list[str]:
        """Names of all dictionaries, CLTs first."""
        return list(dict.fromkeys(self.units["dictionary"]))

    def facts(self) -> Facts:
        """What the units were measured on."""
        return Facts(
            self.data,
            self.n,
            "all",
            "teacher",
            dict(self.l0),
            split=self.split,
            seed=self.seed,
            more={
                "clts": list(self.clts),
                "embeddings": self.embedded_by,
                "seed_clts": list(self.seeds),
                "probes_fitted_on": self.trained_on,
                "readout": self.readout,
                "effect_images": self.effect_images,
                "norms": None if self.readout is None else "differentiated",
                "least_images": MIN_IMAGES,
                "silent": {name: self.silent(name) for name in self.dictionaries},
            },
        )

    def caption(self) -> str:
        """One sentence on what was measured."""
        l0s = ", ".join(f"{name} L0 {self.l0[name]:.1f}" for name in self.clts)
        return (
            f"{self.data}, N = {self.n}, all rows, teacher trajectory, {l0s}, embeddings of "
            f"{self.embedded_by}, seed {self.seed}; means over units active on {MIN_IMAGES} "
            "images or more, 95 % bootstrap over units"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per unit of every dictionary."""
        return self.units.copy()

    def silent(self, dictionary: str) -> float:
        """Share of a dictionary's units that are active on no image."""
        rows = self.units[self.units["dictionary"] == dictionary]
        return float((rows["images"] == 0).mean())

    def mean(self, dictionary: str, measure: str, layer: int | None = None) -> Interval:
        """Mean of a measure over the units for which it is defined, NaN if there are none.

        Args:
            dictionary: its name.
            measure: a key of `MEASURES`.
            layer: one layer; by default all.
        """
        rows = self.units[self.units["dictionary"] == dictionary]
        if layer is not None:
            rows = rows[rows["layer"] == layer]
        values = rows[measure].dropna().to_numpy(float)
        if not len(values):
            return Interval(float("nan"))
        return mean_intervals(values[:, None], self.seed)[0]

    def floor(self, dictionary: str, measure: str, layer: int | None = None) -> float:
        """What units score that know nothing; NaN for a measure without such a number."""
        if f"{measure}_floor" in self.units:
            rows = self.units[self.units["dictionary"] == dictionary]
            if layer is not None:
                rows = rows[rows["layer"] == layer]
            return float(rows[f"{measure}_floor"].mean())
        return float(getattr(self.floors, measure, float("nan")))

    def probe(self, dictionary: str, k: int, layer: int | None = None) -> dict[str, Interval]:
        """Mean AUC over layers and classes of probes of k units: `auc`, and `auc_random`."""
        rows = self.probes
        if len(rows):
            rows = rows[(rows["dictionary"] == dictionary) & (rows["k"] == k)]
        if len(rows) and layer is not None:
            rows = rows[rows["layer"] == layer]
        if not len(rows):
            return dict.fromkeys(("auc", "auc_random"), Interval(float("nan")))
        values = rows[["auc", "auc_random"]].to_numpy(float)
        auc, floor = mean_intervals(values, self.seed)
        return {"auc": auc, "auc_random": floor}

    @property
    def ks(self) -> list[int]:
        """Numbers of units that probes read."""
        return sorted(set(self.probes["k"])) if len(self.probes) else []

    @cached_property
    def _summary(self) -> pd.DataFrame:
        rows = []
        for name in self.dictionaries:
            of_it = self.units[self.units["dictionary"] == name]
            row: dict[str, Any] = {
                "dictionary": name,
                "units": len(of_it),
                "L0": f"{self.l0[name]:.1f}",
                "silent %": f"{100 * self.silent(name):.1f}",
                "measured %": f"{100 * (of_it['images'] >= MIN_IMAGES).mean():.1f}",
            }
            for measure, title in self._measured().items():
                form = ".2g" if measure == "effect" else ".3f"
                row[title] = self._text(self.mean(name, measure), self.floor(name, measure), form)
            for k in self.ks:
                found = self.probe(name, k)
                row[f"probe AUC, k = {k}"] = self._text(found["auc"], found["auc_random"])
            rows.append(row)
        return pd.DataFrame(rows)

    def shown(self) -> pd.DataFrame:
        """One row per dictionary: means over its units, each beside its floor."""
        return self._summary.copy()

    def _measured(self) -> dict[str, str]:
        return {name: title for name, title in MEASURES.items() if self.units[name].notna().any()}

    @staticmethod
    def _text(value: Interval, floor: float, form: str = ".3f") -> str:
        if np.isnan(value):
            return ""
        return value.text(form) + ("" if np.isnan(floor) else f"; floor {floor:.3f}")

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """Means by layer, and absorption by parent."""
        rows = []
        for name in self.dictionaries:
            for layer in sorted(set(self.units.loc[self.units["dictionary"] == name, "layer"])):
                row = {"dictionary": name, "layer": layer}
                for measure, title in self._measured().items():
                    value = self.mean(name, measure, layer)
                    row[title] = (
                        f"{value:.2g}" if measure == "effect" and value == value else _three(value)
                    )
                for k in self.ks:
                    row[f"probe AUC, k = {k}"] = _three(self.probe(name, k, layer)["auc"])
                rows.append(row)
        tables = {"By layer": pd.DataFrame(rows)}
        if len(self.absorption):
            tables["Absorption: means over layers and children"] = self._absorbed()
        return tables

    def _absorbed(self) -> pd.DataFrame:
        rows = []
        for (clt, parent), each in self.absorption.groupby(["dictionary", "parent"], sort=False):
            rows.append(
                {
                    "CLT": clt,
                    "parent": parent,
                    "full": _three(each["full"].mean()),
                    "full, random parents": _three(each["full_random"].mean()),
                    "fraction": _three(each["fraction"].mean()),
                    "fraction, random parents": _three(each["fraction_random"].mean()),
                    "main features a layer": f"{each['main'].str.split().str.len().mean():.1f}",
                }
            )
        return pd.DataFrame(rows)

    def notes(self) -> Sequence[str]:
        """What the floors are."""
        notes = [
            "floors: of monosemanticity the mean cosine of two images, of Moran's I and of "
            "overlaps their means over shuffled patches, of a class AUC 0.5, of probes random "
            "units of equal rate, of stability the other decoders turned at random",
        ]
        if not np.isnan(self.ceiling):
            notes.append(f"a probe of the whole embedding has AUC {self.ceiling:.3f}")
        return notes

    def metrics(self) -> list[Metric]:
        """Means over all layers of every measure, with floors; probes; absorption."""
        metrics = []
        for name in self.dictionaries:
            for measure in self._measured():
                value = self.mean(name, measure)
                if not np.isnan(value):
                    unit, floor = _UNITS.get(measure, "fraction"), self.floor(name, measure)
                    known = None if np.isnan(floor) else floor
                    metrics.append(value.metric(f"{name}_{measure}", unit, self.n, known))
            for k in self.ks:
                found = self.probe(name, k)
                metrics.append(
                    found["auc"].metric(
                        f"{name}_probe_auc_{k}",
                        *("fraction", self.n, found["auc_random"], self.ceiling),
                    )
                )
            metrics.append(Metric(f"{name}_silent", self.silent(name), "fraction", self.n))
        if len(self.absorption):
            for clt, each in self.absorption.groupby("dictionary", sort=False):
                for kind in ("full", "fraction"):
                    value, floor = each[kind].mean(), each[f"{kind}_random"].mean()
                    metrics.append(
                        Metric(f"{clt}_absorption_{kind}", value, "fraction", self.n, floor=floor)
                    )
        return metrics

    def figure(self) -> go.Figure:
        """Every measure by layer, the dictionaries overlaid."""
        from vit_clt.analysis.measures.scores_figure import feature_scores_figure

        return feature_scores_figure(self)


def _three(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"
