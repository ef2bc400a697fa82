"""The names of features: a text each, with its test on held-out images; see `analysis.naming`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

CONTROLS = {
    "random_texts": "as many random texts",
    "other_proposals": "another feature's proposals",
}
"""The controls, as columns of `FeatureNames.frame` and in words."""
_SHOWN = 3  # names a layer in the table made for reading


class FeatureName(NamedTuple):
    """The name of one feature, and how well it foretells where the feature fires."""

    text: str
    auc: Interval
    """P(an image on which it fires matches the text better than one on which it is silent)."""
    texts_mean: float
    """The same of all other texts of the vocabulary, a mean."""
    features_mean: float
    """The same of this text for the 20 features nearest in firing rate, a mean."""
    evidence: str
    """What proposed the text: "write", "images", "patches", or several."""


@dataclass(frozen=True, repr=False)
class FeatureNames(Study):
    """Names of all features of some layers."""

    name = "names"
    extra_files = ("feature_names.json",)

    frame: pd.DataFrame
    """One row per feature. Columns: layer, feature, name (empty where it has none), reason (why it
    has none: "rare", "always on", "no evidence", or the first rule that failed), text (the one
    tested), evidence, fires and n (held-out images on which it fires, and all), auc with auc_low
    and auc_high, texts_mean and texts_high (the mean of the AUC of all other texts, and the least
    of them that 95 % do not exceed), features_mean and features_high (the same of features of equal
    rate for this text), p; and of two controls that go through the same choice and test,
    random_texts (as many random texts as were proposed) and other_proposals (those of a feature of
    equal rate), _auc and _hold (1 where the text chosen would be a name, else 0)."""
    vocabulary: str
    """Where the texts come from."""
    n_texts: int
    n_features: int
    """F."""
    n_chosen_on: int
    """Images on which texts were chosen."""
    n_held_out: int
    """Images on which they were tested."""
    l0: float
    model: str
    weights_sha256: str
    """Of the CLT."""
    data: str
    split: str | None
    seed: int

    def __repr__(self) -> str:
        return f"FeatureNames({self.caption()})"

    def facts(self) -> Facts:
        """What the names were chosen and tested on."""
        return Facts(
            self.data,
            self.n_held_out,
            "all",
            "teacher",
            self.l0,
            split=self.split,
            seed=self.seed,
            more={
                "model": self.model,
                "weights_sha256": self.weights_sha256,
                "vocabulary": self.vocabulary,
                "n_texts": self.n_texts,
                "n_chosen_on": self.n_chosen_on,
            },
        )

    def caption(self) -> str:
        """Data, both numbers of images, vocabulary, L0 and seed."""
        return (
            f"{self.data}, names chosen on {self.n_chosen_on} images and tested on N = "
            f"{self.n_held_out} others, vocabulary: {self.vocabulary}; teacher trajectory, all "
            f"rows, L0 {self.l0:.1f}, seed {self.seed}"
        )

    @cached_property
    def names(self) -> dict[tuple[int, int], FeatureName]:
        """The name of each (layer, feature) that has one."""
        named = self.frame[self.frame["name"] != ""]
        return {
            (int(r["layer"]), int(r["feature"])): FeatureName(
                r["name"],
                Interval.from_columns(r, "auc"),
                r["texts_mean"],
                r["features_mean"],
                r["evidence"],
            )
            for r in named.to_dict("records")
        }

    @cached_property
    def _rows(self) -> dict[tuple[int, int], dict[str, Any]]:
        rows = self.frame.to_dict("records")
        return {(int(r["layer"]), int(r["feature"])): r for r in rows}

    def tested(self, layer: int, feature: int) -> dict[str, Any] | None:
        """The row of one feature in `frame`; None where its layer was not studied."""
        return self._rows.get((layer, feature))

    @property
    def texts(self) -> dict[tuple[int, int], str]:
        """The text alone of each (layer, feature) that has a name."""
        return {address: name.text for address, name in self.names.items()}

    @property
    def by_address(self) -> dict[str, str]:
        """The same, by "layer:feature"."""
        return {f"{s}:{i}": text for (s, i), text in self.texts.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row per feature; see `frame`."""
        return self.frame.copy()

    def summary(self) -> pd.DataFrame:
        """One row per layer: how many features could be tested, and what share has a name.

        Beside it the same shares of both controls (`frame`); and the median AUC of the texts
        chosen, with or without a name, beside those of the controls.
        """
        rows = []
        for layer, features in self.frame.groupby("layer"):
            tested = features[features["auc"].notna()]
            rows.append(
                {
                    "layer": layer,
                    "features": len(features),
                    "tested": len(tested),
                    "named": (tested["name"] != "").mean(),
                    "auc": tested["auc"].median(),
                    **{
                        column: value
                        for control in CONTROLS
                        for column, value in {
                            f"named_{control}": tested[f"{control}_hold"].mean(),
                            f"auc_{control}": tested[f"{control}_auc"].median(),
                        }.items()
                    },
                }
            )
        return pd.DataFrame(rows)

    def shown(self) -> pd.DataFrame:
        """The summary as text, with the names of highest AUC in each layer."""
        table = self.summary()

        def best(layer: int) -> str:
            named = self.frame[(self.frame["layer"] == layer) & (self.frame["name"] != "")]
            top = named.nlargest(_SHOWN, "auc")
            cells = zip(top["feature"], top["name"], top["auc"], strict=True)
            return ", ".join(f"{i} {name} {auc:.2f}" for i, name, auc in cells) or "none"

        return pd.DataFrame(
            {
                "layer": table["layer"],
                "tested": [f"{r.tested} of {r.features}" for r in table.itertuples()],
                "named": [_percent(v) for v in table["named"]],
                **{
                    f"by {text}": [_percent(v) for v in table[f"named_{control}"]]
                    for control, text in CONTROLS.items()
                },
                "AUC": [_decimal(v) for v in table["auc"]],
                **{
                    f"AUC, {text}": [_decimal(v) for v in table[f"auc_{control}"]]
                    for control, text in CONTROLS.items()
                },
                "best: feature, name, AUC": [best(layer) for layer in table["layer"]],
            }
        )

    def notes(self) -> Sequence[str]:
        """What a name is, and what it is not."""
        return [
            "A name is a text whose match with an image foretells whether the feature fires there: "
            "its AUC on held-out images lies above that of at least 95 % of the other texts, above "
            "that of the 20 features of equal rate for the same text, and above 1/2 (p < 0.01). "
            "It is the best of up to nine proposals on other images. Choosing alone finds names "
            "too: as many random texts, and the proposals of a feature of equal rate, go through "
            "the same choice and the same test beside it. AUC is the median over all features "
            "tested, named or not.",
            "Features that fire on fewer than 5 images of either half, or are silent on fewer, are "
            "not tested. A name says what goes with the feature on these images, by the model's "
            "own idea of the text; it need not be all that the feature responds to.",
        ]

    def metrics(self) -> list[Metric]:
        """Shares named and median AUC by layer, beside chance."""
        metrics = []
        for r in self.summary().to_dict("records"):
            s, n = r["layer"], r["tested"]
            floors = {
                measure: max(r[f"{measure}_{control}"] for control in CONTROLS)
                for measure in ("named", "auc")
            }
            metrics += [
                Metric(f"named_features_{s}", r["named"], "fraction", n, floor=floors["named"]),
                Metric(f"name_auc_{s}", r["auc"], "fraction", self.n_held_out, floor=floors["auc"]),
            ]
        return metrics

    def figure(self) -> go.Figure:
        """By layer the share of features with a name, and their AUC, beside chance."""
        from vit_clt.analysis.features.names_figure import names_figure

        return names_figure(self)

    def extras(self) -> Iterable[tuple[str, str]]:
        """The names as JSON, for other commands."""
        from vit_clt.analysis.features.names_file import names_json

        return [("feature_names.json", names_json(self))]


def _percent(value: float) -> str:
    return "undefined" if pd.isna(value) else f"{100 * value:.1f} %"


def _decimal(value: float) -> str:
    return "undefined" if pd.isna(value) else f"{value:.2f}"
