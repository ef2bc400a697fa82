"""The gallery of all features of a CLT, which is the result of `vit-clt features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from vit_clt.analysis.features.page import FeaturePage
from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.analysis.features.summary import PURE, summary, summary_metrics, summary_text
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class FeatureGallery(Study):
    """All features of some layers in numbers, and some of them on pages."""

    name = "features"
    extra_files = (
        "index.html",
        "gallery.css",
        "gallery.js",
        "data.js",
        "pages/pages-*.js",
        "images/sheet-*.png",
    )

    stats: FeatureStatistics
    pages: list[FeaturePage]
    """Pages of some of the features, in the order in which they were chosen."""
    rule: str
    """The rule by which these features were chosen, in words."""

    def facts(self) -> Facts:
        """What the statistics were measured on, and which features have a page."""
        stats, effects = self.stats, self.stats.effects
        return Facts(
            stats.data.name,
            stats.n_images,
            "all",
            "teacher",
            sum(stats.l0.values()) / len(stats.l0),
            split=stats.data.split,
            seed=stats.seed,
            more={
                "layers": stats.layers,
                "pages": len(self.pages),
                "select": self.rule,
                "top": stats.n_top,
                "norms": None if effects is None else "differentiated",
                "effect_images": 0 if effects is None else effects.n_images,
                "templates": None if effects is None else effects.templates,
                "floor": "purity: that of as many images drawn at random",
            },
        )

    def caption(self) -> str:
        """Data, N, trajectory, L0 and seed."""
        return self.stats.context

    def to_frame(self) -> pd.DataFrame:
        """One row per feature, silent ones included; see `FeatureStatistics.to_frame`."""
        return self.stats.to_frame()

    def summary(self) -> pd.DataFrame:
        """One row per layer; see `summary`."""
        return summary(self.to_frame(), self.stats.n_top)

    def shown(self) -> pd.DataFrame:
        """The summary, shares in percent."""
        return summary_text(self.summary())

    def notes(self) -> Sequence[str]:
        """What a pure feature is."""
        return [
            f"pure: {PURE:.0%} or more of a feature's {self.stats.n_top} top images are of one "
            "class; if independent: as many would raise their own by chance"
        ]

    def metrics(self) -> list[Metric]:
        """The columns of the summary as metrics."""
        return summary_metrics(self.summary(), self.stats.n_images)

    def figure(self) -> go.Figure:
        """Purity of a layer's features beside chance, and how many raise the class they fire on."""
        from vit_clt.analysis.features.summary_figure import summary_figure

        return summary_figure(self)

    def extras(self) -> Mapping[str, str | bytes]:
        """The gallery; its images are read once more."""
        from vit_clt.analysis.features.gallery_contents import gallery_contents

        return gallery_contents(self)


def feature_gallery(
    stats: FeatureStatistics,
    features: Sequence[tuple[int, int]],
    rule: str,
    *,
    progress: bool = False,
) -> FeatureGallery:
    """The gallery of all features of `stats`, with pages of some of them.

    Args:
        stats: the statistics of all features.
        features: the (layer, feature) pairs that get a page, without repeats.
        rule: the rule by which they were chosen, in words.
        progress: show a progress bar.

    Raises:
        InputError: what `FeatureStatistics.pages` refuses.
    """
    return FeatureGallery(stats, stats.pages(features, progress=progress), rule)
