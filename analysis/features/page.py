"""The page of one feature: images, the patches on which it fires, and its nearest features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int

from vit_clt.analysis.features.active import active_codes
from vit_clt.analysis.stats.nearest import nearest
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder

QUARTERS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
"""Ranges of quantiles of |image-level activation| that examples are drawn from."""


@dataclass(frozen=True)
class Example:
    """One image, and the feature's activations on its token rows."""

    row: int
    """Number of the image in the data."""
    value: float
    """Image-level activation: the signed z of largest |z| over the image's rows."""
    label: int
    """Label of the image; -1 where unknown."""
    cls: float | None
    """z of the class token; None where the model has none."""
    patches: Float[np.ndarray, "down across"]
    """z of each patch, the top row of the image first."""


@dataclass(frozen=True)
class ActivationRange:
    """Images drawn at random between two quantiles of |image-level activation|."""

    low: float
    """Lower quantile."""
    high: float
    """Upper quantile."""
    examples: list[Example]


@dataclass(frozen=True)
class FeaturePage:
    """One feature on one data set. Rates are fractions, activations are in units of z."""

    layer: int
    feature: int
    image_rate: float
    """Share of images with at least one row on which it is active."""
    cls_rate: float
    """Share of CLS rows on which it is active; NaN where the model has none."""
    patch_rate: float
    """Share of patch rows on which it is active."""
    active_images: int
    """Number of images with at least one row on which it is active."""
    edges: Float[np.ndarray, " edge"]
    """Edges of the bins of the histogram of non-zero activations."""
    counts: Int[np.ndarray, "kind bin"]
    """Number of active rows in each bin: CLS rows, then patch rows."""
    top: list[Example]
    """The most active images, largest |value| first."""
    ranges: list[ActivationRange]
    """Images of every range of `QUARTERS`, weakest range first, out of at most 64 active images
    drawn at random."""
    writes: dict[int, tuple[float, float]]
    """Write strength on CLS rows and on patch rows by target; NaN where the feature is silent."""
    effects: Float[np.ndarray, "centred_and_raw class"] | None
    """Direct effect on each logit, a mean over the images where the feature is active: first minus
    its mean over classes, then unchanged. None without a classifier; NaN where the feature is
    active on no image."""
    effect_images: int
    """Number of images with the feature active among those that effects are measured on."""
    near: list[NearFeature]
    """The nearest features by what they write, nearest first."""
    together: list[float]
    """Jaccard index with each near feature: images with both active as a share of those with either
    active; NaN where its layer was not studied, or neither is active."""
    label: int
    """The most common label of the top images; -1 where none is known."""
    purity: float
    """Share of the top images that have `label`."""
    base: float
    """Share of all images that have `label`."""
    purity_by_chance: float
    """Mean purity of as many images drawn at random."""

    @property
    def examples(self) -> list[Example]:
        """All images of the page, the top ones first; an image may stand there twice."""
        return [*self.top, *(shown for part in self.ranges for shown in part.examples)]

    @property
    def map_scale(self) -> float:
        """Largest |z| of a patch on any image of the page: full colour in its activation maps."""
        return max((float(np.abs(shown.patches).max()) for shown in self.examples), default=0.0)


@torch.no_grad()
def activations_at(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    images: Mapping[tuple[int, int], Sequence[int]],
    *,
    progress: bool = False,
) -> dict[tuple[int, int], Float[np.ndarray, "image token"]]:
    """z of some features on some images, on every token row; each image is read once.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        data: the images.
        images: for each (layer, feature) the numbers of its images, at least one and without
            repeats; the result keeps their order.
        progress: show a progress bar.
    """
    n_images, n_tokens = len(data), vit.cfg.n_tokens
    layers = sorted({layer for layer, _ in images})
    # an active entry finds its place by the number of its (feature, image) pair
    pairs, places, values = {}, {}, {}
    for s in layers:
        numbers = [i * n_images + r for (l, i), rows in images.items() if l == s for r in rows]
        order = np.argsort(numbers)
        pairs[s], places[s] = np.array(numbers, np.int64)[order], order
        values[s] = np.zeros((len(numbers), n_tokens), np.float32)
    needed = sorted({row for rows in images.values() for row in rows})
    size = data.batch_size
    for start in Progress(
        range(0, len(needed), size), "activation maps", unit=" batches", disable=not progress
    ):
        rows = np.array(needed[start : start + size])
        x = capture(vit, data.batch(rows.tolist())[0].to(clt.b_enc.device)).x
        for s in layers:
            active = active_codes(clt.encode(x[s], layer=s))
            number = active.features.cpu().numpy() * n_images + rows[active.images.cpu().numpy()]
            at = np.searchsorted(pairs[s], number).clip(max=len(pairs[s]) - 1)
            shown = pairs[s][at] == number
            tokens = active.tokens.cpu().numpy()[shown]
            values[s][places[s][at[shown]], tokens] = active.values.float().cpu().numpy()[shown]
    result, done = {}, dict.fromkeys(layers, 0)
    for (s, i), of_feature in images.items():
        result[s, i] = values[s][done[s] : done[s] + len(of_feature)]
        done[s] += len(of_feature)
    return result


def check_features(
    features: Sequence[tuple[int, int]], layers: Sequence[int], n_features: int
) -> None:
    """Refuse (layer, feature) that does not exist, or whose layer is not studied.

    Raises:
        InputError: there is no feature, its layer is not one of `layers`, or it is out of range.
    """
    if not features:
        raise InputError("feature", "is empty; expected at least one (layer, feature).")
    for layer, feature in features:
        if layer not in layers:
            raise InputError(
                "feature",
                f"is {layer}:{feature}; expected one of the layers looked at, "
                f"{', '.join(map(str, layers))}.",
            )
        if not 0 <= feature < n_features:
            raise InputError(
                "feature", f"is {layer}:{feature}; expected features from 0 to {n_features - 1}."
            )


def example(vit: HookedViT, row: int, label: int, values: Float[np.ndarray, " token"]) -> Example:
    """The example of image `row`, from the feature's z on all its token rows."""
    down, across = vit.cfg.patch_grid
    patches = values[len(values) - down * across :]
    largest, least = float(values.max()), float(values.min())
    return Example(
        row=row,
        value=largest if largest >= -least else least,
        label=label,
        cls=float(values[0]) if vit.cfg.rows.has_cls else None,
        patches=patches.reshape(down, across),
    )


class NearFeature(NamedTuple):
    """A feature that writes much the same as another."""

    layer: int
    feature: int
    cosine: float
    """Cosine of both decoder rows over the targets that both write to, side by side."""
    n_targets: int
    """Number of targets that both write to."""


@torch.no_grad()
def nearest_features(
    clt: CrossLayerTranscoder,
    features: Sequence[tuple[int, int]],
    k: int = 5,
    *,
    progress: bool = False,
) -> dict[tuple[int, int], list[NearFeature]]:
    """The k nearest of all features to each (layer, feature) by the cosine of what they write.

    The nearest comes first; ties go to the earlier layer, then to the lower number. A feature of a
    per-layer transcoder writes to its own layer alone and has no cosine with those of other layers.
    """
    neighbours: dict[tuple[int, int], list[NearFeature]] = {address: [] for address in features}
    config = clt.config
    layers = sorted({layer for layer, _ in features})
    for s in Progress(layers, "features that write alike", unit=" layers", disable=not progress):
        numbers = [feature for layer, feature in features if layer == s]
        for other in range(config.n_layers):
            shared = sorted(set(config.targets(s)) & set(config.targets(other)))
            available = config.n_features - (other == s)
            if not shared or not available:
                continue
            queries = _written(clt, s, shared)[numbers]
            rows, cosines = nearest(
                queries,
                _written(clt, other, shared),
                min(k, available),
                own_rows=np.array(numbers) if other == s else None,
            )
            for i, near, cosine in zip(numbers, rows.tolist(), cosines.tolist(), strict=True):
                pairs = zip(near, cosine, strict=True)
                neighbours[s, i] += [NearFeature(other, j, c, len(shared)) for j, c in pairs]
    return {
        address: sorted(near, key=lambda f: (-f.cosine, f.layer, f.feature))[:k]
        for address, near in neighbours.items()
    }


def _written(clt: CrossLayerTranscoder, source: int, targets: Sequence[int]) -> np.ndarray:
    """Decoder rows of a source layer over some of its targets, side by side: "feature column"."""
    blocks = torch.stack([clt.decoder(source, l) for l in targets]).detach().float().cpu()
    return rearrange(blocks, "target feature d -> feature (target d)").numpy()
