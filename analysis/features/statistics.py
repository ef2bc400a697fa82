"""Every feature of a CLT over a data set: how often and on what it fires, what it writes and does.

Codes come from the teacher trajectory, and a feature is active where z != 0. The image-level
activation of a feature is its signed z of largest |z| over the image's rows. One pass over the
images (`feature_statistics`) keeps counts, a histogram and a few images of each feature;
`feature_pages` then reads the images that they show once more. Definitions are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from vit_clt.analysis.features.active import CLS, PATCH
from vit_clt.analysis.features.effects import ClassEffects
from vit_clt.analysis.features.page import FeaturePage, check_features
from vit_clt.analysis.features.pages import FeaturePages
from vit_clt.analysis.features.purity import purity, purity_by_chance
from vit_clt.analysis.features.summary import PURE, summary, summary_metrics, summary_text
from vit_clt.analysis.features.tally import FeatureTally
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, repr=False)
class FeatureStatistics(Study):
    """All features of some source layers on one data set."""

    name = "features"

    vit: HookedViT
    clt: CrossLayerTranscoder
    data: ImageData
    layers: list[int]
    tallies: dict[int, FeatureTally]
    norms: Float[np.ndarray, "kind layer"]
    """sqrt(E||y_l||^2) over the CLS rows and over the patch rows; NaN where there are none."""
    labels: Int[np.ndarray, " image"]
    """Label of each image; -1 where unknown."""
    effects: ClassEffects | None
    """Direct effects on class logits; None without a classifier."""
    n_top: int
    """Images kept of each feature's most active ones."""
    seed: int
    """Seed of the images drawn at random."""

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        return f"{type(self).__name__}({self.caption()}, layers {layers})"

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def l0(self) -> dict[int, float]:
        """Active features per token row, over all rows, by layer."""
        rows = self.n_images * self.vit.cfg.n_tokens
        return {s: int(tally.counts.rows.sum()) / rows for s, tally in self.tallies.items()}

    def facts(self) -> Facts:
        """What the statistics were measured on."""
        effects = self.effects
        return Facts(
            self.data.name,
            self.n_images,
            "all",
            "teacher",
            sum(self.l0.values()) / len(self.l0),
            split=self.data.split,
            seed=self.seed,
            more={
                "layers": self.layers,
                "top": self.n_top,
                "norms": None if effects is None else "differentiated",
                "effect_images": 0 if effects is None else effects.n_images,
                "readout": None if effects is None else effects.readout,
                "floor": "purity: that of as many images drawn at random",
            },
        )

    def caption(self) -> str:
        """Data, N, trajectory, L0 and seed."""
        return (
            f"{self.data.name}, N = {self.n_images}, teacher trajectory, L0 {self.facts().l0:.1f} "
            f"a token row, seed {self.seed}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per feature, silent ones included; rates and purity are fractions.

        `peak` is the activation of largest size, signed; `mean_cls` and `mean_patch` are means of
        |z| over the active rows; `raised` is the class whose logit the feature raises most,
        `effect` its direct effect on that logit (centred over classes) and `effect_lowest` that on
        the logit it lowers most. Where all effects are 0, no class is raised; where none was
        measured, they are NaN.
        """
        return self._table.copy()

    @cached_property
    def _table(self) -> pd.DataFrame:
        return pd.concat([self._frame(s) for s in self.layers], ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """One row per layer; see `summary`."""
        return summary(self.to_frame(), self.n_top)

    def shown(self) -> pd.DataFrame:
        """The summary, shares in percent."""
        return summary_text(self.summary())

    def notes(self) -> Sequence[str]:
        """What a pure feature is."""
        return [
            f"pure: {PURE:.0%} or more of a feature's {self.n_top} top images are of one "
            "class; if independent: as many would raise their own by chance"
        ]

    def metrics(self) -> list[Metric]:
        """The columns of the summary as metrics."""
        return summary_metrics(self.summary(), self.n_images)

    def figure(self) -> go.Figure:
        """Purity of a layer's features beside chance, and how many raise the class they fire on."""
        from vit_clt.analysis.features.summary_figure import summary_figure

        return summary_figure(self)

    def feature_page(self, layer: int, feature: int) -> FeaturePage:
        """The page of one feature; see `feature_pages`."""
        return self.feature_pages([(layer, feature)])[0]

    def feature_pages(
        self, features: Sequence[tuple[int, int]], *, progress: bool = False
    ) -> FeaturePages:
        """The page of each (layer, feature), in this order; each image they show is read once.

        Args:
            features: (layer, feature) pairs without repeats.
            progress: show progress bars.

        Raises:
            InputError: what `check` refuses.
        """
        self.check(features)
        return FeaturePages(self, features, progress=progress)

    def feature_figure(self, layer: int, feature: int) -> go.Figure:
        """Top images with activation maps, histogram, writes and effects of one feature.

        Raises:
            InputError: what `feature_pages` refuses, or the model came without its preprocessing.
        """
        from vit_clt.analysis.features.figure import feature_figure

        return feature_figure(self, self.feature_page(layer, feature))

    def check(self, features: Sequence[tuple[int, int]]) -> None:
        """Refuse (layer, feature) that can have no page.

        Raises:
            InputError: there is no feature, its layer was not studied, it is out of range, or it is
                active on no image.
        """
        check_features(features, self.layers, self.clt.config.n_features)
        for layer, feature in features:
            if not self.tallies[layer].counts.images[feature]:
                raise InputError(
                    "feature",
                    f"is {layer}:{feature}, which is active on none of the {self.n_images} "
                    f"images of {self.data.name}; expected one that is.",
                )

    def rates(self, layer: int) -> Float[np.ndarray, "kind feature"]:
        """Share of the CLS rows and of the patch rows on which each feature of a layer is active;
        NaN for a kind that the model does not have."""
        return self.tallies[layer].counts.rows.numpy() / self._row_counts()[:, None]

    def _row_counts(self) -> Float[np.ndarray, " kind"]:
        """Number of token rows of each kind; NaN for a kind that the model does not have."""
        counts = np.array(self.vit.cfg.rows.sizes) * float(self.n_images)
        return np.where(counts, counts, np.nan)

    def sizes(self, layer: int) -> Float[np.ndarray, "kind feature"]:
        """Mean |z| of each feature of a layer over its active rows of each group; NaN where
        there are none."""
        tally = self.tallies[layer]
        rows = tally.counts.rows.double().numpy()
        return tally.magnitude.numpy() / np.where(rows, rows, np.nan)

    def purity(self, layer: int) -> dict[str, np.ndarray]:
        """Purity of the top images of each feature of a layer, by name (see `purity`)."""
        return purity(self.tallies[layer].top.rows.numpy(), self.labels, self._by_chance)

    @cached_property
    def _by_chance(self) -> Float[np.ndarray, " images_and_none"]:
        return purity_by_chance(self.labels, self.n_top, self.seed)

    def _frame(self, layer: int) -> pd.DataFrame:
        tally = self.tallies[layer]
        rates, sizes = self.rates(layer), self.sizes(layer)
        columns: dict[str, Any] = {
            "layer": layer,
            "feature": np.arange(self.clt.config.n_features),
            "active_images": tally.counts.images.numpy(),
            "image_rate": tally.counts.images.numpy() / self.n_images,
            "cls_rate": rates[CLS],
            "patch_rate": rates[PATCH],
            "peak": tally.top.values[:, 0].numpy(),
            "mean_cls": sizes[CLS],
            "mean_patch": sizes[PATCH],
            **self.purity(layer),
        }
        names = dict(enumerate(self.data.class_names))
        columns["class"] = [names.get(c, "") for c in columns["label"].tolist()]
        if self.effects is not None:
            centred = self.effects.centred(layer)
            images = self.effects.images[layer]
            largest = np.nan_to_num(centred)
            # effects that are all 0, such as those of patch rows of the last layer, raise no class
            at = np.where(largest.max(1) > 0, largest.argmax(1), -1)
            columns["raised"] = ["" if c < 0 else self.effects.class_names[c] for c in at.tolist()]
            columns["effect"] = centred.max(1)
            columns["effect_lowest"] = centred.min(1)
            columns["effect_images"] = images
        return pd.DataFrame(columns).assign(n=self.n_images, l0=self.l0[layer])
