"""What there is to see of one feature: images, where on them it fires, and its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from tqdm import tqdm

from vit_clt.analysis.features.active import active_codes
from vit_clt.analysis.stats.nearest import nearest
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.transcoder.model import CrossLayerTranscoder

BANDS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
"""Quantiles of |image-level activation| that examples are drawn from."""


@dataclass(frozen=True)
class Example:
    """One image and where the feature fires on it."""

    row: int
    """Of the data."""
    value: float
    """Image-level activation: the signed z of largest |z| over the image's rows."""
    label: int
    """-1 where unknown."""
    cls: float | None
    """z of the class token; None where the model has none."""
    patches: Float[np.ndarray, "down across"]
    """z of each patch, the first row on top."""


@dataclass(frozen=True)
class Band:
    """Images drawn at random from between two quantiles of the image-level activation."""

    low: float
    high: float
    examples: list[Example]


@dataclass(frozen=True)
class FeaturePage:
    """One feature on one data set. Rates are fractions, activations are in units of z."""

    layer: int
    feature: int
    image_rate: float
    """Share of images with an active row."""
    cls_rate: float
    """Share of CLS rows on which it is active; NaN where the model has none."""
    patch_rate: float
    active_images: int
    edges: Float[np.ndarray, " edge"]
    """Of the histogram of non-zero activations."""
    counts: Int[np.ndarray, "kind bin"]
    """Active rows in each bin: CLS rows, patch rows."""
    top: list[Example]
    """Largest |value| first."""
    bands: list[Band]
    """Weakest first; of at most 64 active images drawn at random."""
    writes: dict[int, tuple[float, float]]
    """By target: write strength on CLS rows and on patch rows; NaN where it is silent on them."""
    effects: Float[np.ndarray, "centred_and_raw class"] | None
    """Direct effect on each logit, a mean over the images where it is active: less its mean over
    classes, and as it is. None without a classifier; NaN where it is active on no image."""
    effect_images: int
    """Active images among those that effects are measured on."""
    near: list[NearFeature]
    together: list[float]
    """Of each near feature the share of images with either active on which both are; NaN where its
    layer was not looked at, or neither is active."""
    label: int
    """The most common label of the top images; -1 where none is known."""
    purity: float
    """Its share of the top images."""
    base: float
    """Its share of all images."""
    purity_by_chance: float
    """Mean purity of as many images drawn at random."""

    @property
    def map_scale(self) -> float:
        """Largest |z| of a patch on any image of the page: full colour in its activation maps."""
        shown = [*self.top, *(each for band in self.bands for each in band.examples)]
        return max((float(np.abs(each.patches).max()) for each in shown), default=0.0)


@torch.no_grad()
def activations_at(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    wanted: Mapping[tuple[int, int], Sequence[int]],
    *,
    progress: bool = False,
) -> dict[tuple[int, int], Float[np.ndarray, "image token"]]:
    """z of some features on some images, every token row; each image is read once.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        data: the images.
        wanted: by (layer, feature) the images' rows, at least one and without repeats; they keep
            their order.
        progress: show a progress bar.
    """
    n_rows, n_tokens = len(data), vit.cfg.n_tokens
    layers = sorted({layer for layer, _ in wanted})
    # an active entry finds its place by the number of its (feature, image) pair
    pairs, places, found = {}, {}, {}
    for s in layers:
        numbers = [i * n_rows + r for (l, i), rows in wanted.items() if l == s for r in rows]
        order = np.argsort(numbers)
        pairs[s], places[s] = np.array(numbers, np.int64)[order], order
        found[s] = np.zeros((len(numbers), n_tokens), np.float32)
    needed = sorted({row for rows in wanted.values() for row in rows})
    size = data.batch_size
    for start in tqdm(
        range(0, len(needed), size), "activation maps", unit=" batches", disable=not progress
    ):
        rows = np.array(needed[start : start + size])
        x = capture(vit, data.batch(rows.tolist())[0].to(clt.b_enc.device)).x
        for s in layers:
            active = active_codes(clt.encode(x[s], layer=s))
            number = active.features.cpu().numpy() * n_rows + rows[active.images.cpu().numpy()]
            at = np.searchsorted(pairs[s], number).clip(max=len(pairs[s]) - 1)
            shown = pairs[s][at] == number
            tokens = active.tokens.cpu().numpy()[shown]
            found[s][places[s][at[shown]], tokens] = active.values.float().cpu().numpy()[shown]
    result, done = {}, dict.fromkeys(layers, 0)
    for (s, i), images in wanted.items():
        result[s, i] = found[s][done[s] : done[s] + len(images)]
        done[s] += len(images)
    return result


def check_features(
    chosen: Sequence[tuple[int, int]], layers: Sequence[int], n_features: int
) -> None:
    """Refuse (layer, feature) that does not exist, or whose layer is not looked at.

    Raises:
        InputError: none at all, a layer that is not one of `layers`, or a feature out of range.
    """
    if not chosen:
        raise InputError("feature", "is empty; expected at least one (layer, feature).")
    for layer, feature in chosen:
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
    """An image from the feature's z on all its token rows."""
    down, across = vit.cfg.patch_grid
    patches = values[len(values) - down * across :]
    largest, least = float(values.max()), float(values.min())
    return Example(
        row=row,
        value=largest if largest >= -least else least,
        label=label,
        cls=float(values[0]) if vit.cfg.has_cls else None,
        patches=patches.reshape(down, across),
    )


class NearFeature(NamedTuple):
    """A feature near another."""

    layer: int
    feature: int
    cosine: float
    n_targets: int
    """Targets both write to, over which the cosine is taken."""


@torch.no_grad()
def nearest_features(
    clt: CrossLayerTranscoder, chosen: Sequence[tuple[int, int]], k: int = 5
) -> dict[tuple[int, int], list[NearFeature]]:
    """The k nearest of all features to each (layer, feature), nearest first.

    Ties go to the earlier layer, then to the lower number. Per-layer transcoders write to their own
    layer alone, so that features of other layers have no cosine with them.
    """
    found: dict[tuple[int, int], list[NearFeature]] = {each: [] for each in chosen}
    config = clt.config
    for s in sorted({layer for layer, _ in chosen}):
        own = [each for each in chosen if each[0] == s]
        features = [feature for _, feature in own]
        for other in range(config.n_layers):
            shared = sorted(set(config.targets(s)) & set(config.targets(other)))
            available = config.n_features - (other == s)
            if not shared or not available:
                continue
            queries = _written(clt, s, shared)[features]
            rows, cosines = nearest(
                queries,
                _written(clt, other, shared),
                min(k, available),
                own_rows=np.array(features) if other == s else None,
            )
            for each, near, cosine in zip(own, rows.tolist(), cosines.tolist(), strict=True):
                pairs = zip(near, cosine, strict=True)
                found[each] += [NearFeature(other, j, c, len(shared)) for j, c in pairs]
    return {
        each: sorted(near, key=lambda f: (-f.cosine, f.layer, f.feature))[:k]
        for each, near in found.items()
    }


def _written(clt: CrossLayerTranscoder, source: int, targets: Sequence[int]) -> np.ndarray:
    """Decoder rows of a source over some of its targets side by side, "feature column"."""
    blocks = torch.stack([clt.decoder(source, l) for l in targets]).detach().float().cpu()
    return rearrange(blocks, "target feature d -> feature (target d)").numpy()
