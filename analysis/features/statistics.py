"""Every feature of a CLT over a data set: how often and on what it fires, what it writes and does.

On the teacher trajectory; activity is z != 0; the image-level activation of a feature is its signed
z of largest |z| over the image's rows. One pass over the images keeps counts, a histogram and a few
images of each feature; `page` then looks at the images it shows once more. Definitions are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from vit_clt.analysis.features.active import CLS, PATCH, active_codes
from vit_clt.analysis.features.effects import ClassEffects, class_effects
from vit_clt.analysis.features.page import (
    BANDS,
    Band,
    FeaturePage,
    activations_at,
    check_features,
    example,
    nearest_features,
)
from vit_clt.analysis.features.purity import purity, purity_by_chance
from vit_clt.analysis.features.tally import FeatureTally
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, layer_list
from vit_clt.hooks.activations import capture
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot

if TYPE_CHECKING:
    import plotly.graph_objects as go

EXAMPLES = 3
"""Images drawn from each quantile band."""


@dataclass(frozen=True, repr=False)
class FeatureStatistics:
    """All features of some source layers on one data set."""

    vit: HookedViT
    clt: CrossLayerTranscoder
    data: ImageData
    layers: list[int]
    tallies: dict[int, FeatureTally]
    norms: Float[np.ndarray, "kind layer"]
    """sqrt(E||y_l||^2) over the CLS rows and over the patch rows; NaN where there are none."""
    labels: Int[np.ndarray, " image"]
    """-1 where unknown."""
    effects: ClassEffects | None
    """None without a classifier."""
    n_top: int
    seed: int
    """Of the random images."""

    def __repr__(self) -> str:
        return f"FeatureStatistics({self.context}, layers {', '.join(map(str, self.layers))})"

    @property
    def n_images(self) -> int:
        """N."""
        return len(self.labels)

    @cached_property
    def l0(self) -> dict[int, float]:
        """Active features a token row, by layer, over all rows."""
        rows = self.n_images * self.vit.cfg.n_tokens
        return {s: int(tally.counts.rows.sum()) / rows for s, tally in self.tallies.items()}

    @property
    def context(self) -> str:
        """Data, N, trajectory, L0 and seed, for captions."""
        mean = sum(self.l0.values()) / len(self.l0)
        return (
            f"{self.data.name}, N = {self.n_images}, teacher trajectory, L0 {mean:.1f} a token "
            f"row, seed {self.seed}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per feature, silent ones included; rates and purity are fractions.

        `peak` is the activation of largest size, signed; `mean_cls`, `mean_patch` are means of |z|
        over the active rows; `raised` is the class whose logit the feature raises most, `effect`
        that centred direct effect and `effect_lowest` the one of the class it lowers most; where
        all effects are 0, no class is raised, and where none was measured, they are NaN.
        """
        return pd.concat([self._frame(s) for s in self.layers], ignore_index=True)

    def page(self, layer: int, feature: int) -> FeaturePage:
        """One feature's page; see `pages`."""
        return self.pages([(layer, feature)])[0]

    def pages(
        self, chosen: Sequence[tuple[int, int]], *, progress: bool = False
    ) -> list[FeaturePage]:
        """Pages of (layer, feature), in this order; each image they show is read once.

        Args:
            chosen: without repeats.
            progress: show a progress bar.

        Raises:
            InputError: as `check`.
        """
        self.check(chosen)
        top = {each: self.tallies[each[0]].top.of(each[1])[0].tolist() for each in chosen}
        drawn = {each: self._draw(*each) for each in chosen}
        wanted = {
            each: sorted({*top[each], *(row for rows in drawn[each] for row in rows)})
            for each in chosen
        }
        values = activations_at(self.vit, self.clt, self.data, wanted, progress=progress)
        neighbours = nearest_features(self.clt, chosen)
        purities = {s: self._purity(s) for s in {layer for layer, _ in chosen}}
        found = []
        for each in chosen:
            layer, feature = each
            shown = {
                row: example(self.vit, row, int(self.labels[row]), z)
                for row, z in zip(wanted[each], values[each], strict=True)
            }
            tally = self.tallies[layer]
            rates = self._rates(layer)[:, feature].tolist()
            edges, counts = tally.histograms.of(feature)
            own_purity = {name: of[feature].item() for name, of in purities[layer].items()}
            found.append(
                FeaturePage(
                    layer=layer,
                    feature=feature,
                    image_rate=int(tally.counts.images[feature]) / self.n_images,
                    cls_rate=rates[CLS],
                    patch_rate=rates[PATCH],
                    active_images=int(tally.counts.images[feature]),
                    edges=edges,
                    counts=counts,
                    top=[shown[row] for row in top[each]],
                    bands=[
                        Band(low, high, [shown[row] for row in rows])
                        for (low, high), rows in zip(BANDS, drawn[each], strict=True)
                    ],
                    writes=self._writes(layer, feature),
                    effects=self._effects(layer, feature),
                    effect_images=0
                    if self.effects is None
                    else int(self.effects.images[layer][feature]),
                    near=neighbours[each],
                    together=[
                        tally.jaccard(feature, self.tallies[n.layer], n.feature)
                        if n.layer in self.tallies
                        else float("nan")
                        for n in neighbours[each]
                    ],
                    **own_purity,
                )
            )
        return found

    def figure(self, layer: int, feature: int) -> go.Figure:
        """Top images with activation maps, histogram, writes and effects of one feature.

        Raises:
            InputError: as `pages`, or the model came without its preprocessing.
        """
        from vit_clt.analysis.features.figure import feature_figure

        return feature_figure(self, self.page(layer, feature))

    def check(self, chosen: Sequence[tuple[int, int]]) -> None:
        """Refuse (layer, feature) that can have no page.

        Raises:
            InputError: none, a layer that was not looked at, a feature out of range, or one that is
                active on no image.
        """
        check_features(chosen, self.layers, self.clt.config.n_features)
        for layer, feature in chosen:
            if not self.tallies[layer].counts.images[feature]:
                raise InputError(
                    "feature",
                    f"is {layer}:{feature}, which is active on none of the {self.n_images} "
                    f"images of {self.data.name}; expected one that is.",
                )

    def _rates(self, layer: int) -> Float[np.ndarray, "kind feature"]:
        return self.tallies[layer].counts.rows.numpy() / self._row_counts()[:, None]

    def _row_counts(self) -> Float[np.ndarray, " kind"]:
        """Token rows of each kind; NaN for none."""
        n_cls = int(self.vit.cfg.has_cls)
        counts = np.array([n_cls, self.vit.cfg.n_tokens - n_cls]) * float(self.n_images)
        return np.where(counts, counts, np.nan)

    def _sizes(self, layer: int) -> Float[np.ndarray, "kind feature"]:
        """Mean |z| over the active rows; NaN where there are none."""
        tally = self.tallies[layer]
        rows = tally.counts.rows.double().numpy()
        return tally.magnitude.numpy() / np.where(rows, rows, np.nan)

    def _writes(self, layer: int, feature: int) -> dict[int, tuple[float, float]]:
        norms = self.clt.W_dec[layer][:, feature].detach().double().norm(dim=1).tolist()
        sizes = self._sizes(layer)[:, feature]
        strengths = {}
        for l, norm in zip(self.clt.config.targets(layer), norms, strict=True):
            cls, patch = (sizes * norm / self.norms[:, l]).tolist()
            strengths[l] = cls, patch
        return strengths

    def _effects(self, layer: int, feature: int) -> Float[np.ndarray, "both class"] | None:
        if self.effects is None:
            return None
        effects = self.effects
        return np.stack([each(layer)[feature] for each in (effects.centred, effects.mean)])

    def _draw(self, layer: int, feature: int) -> list[list[int]]:
        """Rows of images by quantile band, drawn without repeats, the most active one first."""
        rows, values = self.tallies[layer].sample.of(feature)
        order = values.abs().argsort(stable=True)
        ranked = rows[order].tolist()
        rng = np.random.default_rng([self.seed, layer, feature])
        found = []
        for low, high in BANDS:
            inside = ranked[round(low * len(ranked)) : round(high * len(ranked))]
            picked = rng.choice(len(inside), min(EXAMPLES, len(inside)), replace=False)
            found.append([inside[i] for i in sorted(picked, reverse=True)])
        return found

    def _purity(self, layer: int) -> dict[str, np.ndarray]:
        return purity(self.tallies[layer].top.rows.numpy(), self.labels, self._by_chance)

    @cached_property
    def _by_chance(self) -> Float[np.ndarray, " images_and_none"]:
        return purity_by_chance(self.labels, self.n_top, self.seed)

    def _frame(self, layer: int) -> pd.DataFrame:
        tally = self.tallies[layer]
        rates, sizes = self._rates(layer), self._sizes(layer)
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
            **self._purity(layer),
        }
        names = dict(enumerate(self.data.class_names))
        columns["class"] = [names.get(c, "") for c in columns["label"].tolist()]
        if self.effects is not None:
            centred = self.effects.centred(layer)
            images = self.effects.images[layer]
            largest = np.nan_to_num(centred)
            # effects that are all 0, as of patch rows of the last layer, raise no class
            at = np.where(largest.max(1) > 0, largest.argmax(1), -1)
            columns["raised"] = ["" if c < 0 else self.effects.class_names[c] for c in at.tolist()]
            columns["effect"] = centred.max(1)
            columns["effect_lowest"] = centred.min(1)
            columns["effect_images"] = images
        return pd.DataFrame(columns).assign(n=self.n_images, l0=self.l0[layer])


@torch.no_grad()
def feature_statistics(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor | Iterable[Any],
    *,
    layers: Sequence[int] | None = None,
    zs: ZeroShot | None = None,
    effect_images: int = 200,
    top: int = 12,
    seed: int = 0,
    progress: bool = False,
) -> FeatureStatistics:
    """What every feature of these layers does on these images, in one pass, batch by batch.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        images: ImageData, a tensor "image 3 height width", or batches. They are read once more
            when a page shows some of them.
        layers: source layers; all by default.
        zs: the classes that direct effects are measured on, or None for no effects.
        effect_images: how many of the first images effects are measured on.
        top: images kept of each feature's most active ones, from which purity is read.
        seed: of the images drawn at random.
        progress: show progress bars.

    Raises:
        InputError: no images, a layer or number out of range, a CLT of another model, or effects
            asked of a model that does not pool the class token alone.
    """
    check_fits(vit, clt)
    data = as_image_data(images)
    check_prepared(vit, data)
    if top < 1:
        raise InputError("top", f"is {top}; expected at least 1.")
    cfg, n_features, n = vit.cfg, clt.config.n_features, len(data)
    sources = layer_list(range(cfg.n_layers) if layers is None else layers, cfg.n_layers)
    effects = None
    if zs is not None:  # first: what cannot be measured is refused before the long pass
        effects = class_effects(
            vit, clt, data, zs, sources, n_images=effect_images, progress=progress
        )
    turns = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    n_cls = int(cfg.has_cls)
    tallies = {s: FeatureTally(n_features, n_cls, top, turns) for s in sources}
    squares = torch.zeros(2, cfg.n_layers, dtype=torch.float64)
    labels: list[Tensor] = []
    done = 0
    with tqdm(total=n, desc="feature statistics", unit=" images", disable=not progress) as bar:
        for batch, batch_labels in data:
            both = capture(vit, batch.to(clt.b_enc.device))
            for kind, rows in ((CLS, slice(0, n_cls)), (PATCH, slice(n_cls, None))):
                squares[kind] += both.y[:, :, rows].double().square().sum((1, 2, 3)).cpu()
            for s in sources:
                tallies[s].add(active_codes(clt.encode(both.x[s], layer=s)), done)
            labels.append(batch_labels.cpu())
            done += len(batch)
            bar.update(len(batch))
    # 0 / 0 where there are no CLS rows
    n_rows = torch.tensor([n_cls, cfg.n_tokens - n_cls], dtype=torch.float64) * n
    norms = (squares / n_rows[:, None]).sqrt().numpy()
    return FeatureStatistics(
        vit, clt, data, sources, tallies, norms, torch.cat(labels).numpy(), effects, top, seed
    )
