"""The pass over the images that gathers the statistics of every feature, and their gallery."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_clt.analysis.features.active import N_GROUPS, active_codes
from vit_clt.analysis.features.choice import (
    check_measured,
    check_selection,
    rule_in_words,
    select_features,
)
from vit_clt.analysis.features.effects import class_effects
from vit_clt.analysis.features.gallery import FeatureGallery, feature_gallery
from vit_clt.analysis.features.names import FeatureNames
from vit_clt.analysis.features.page import check_features
from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.analysis.features.tally import FeatureTally
from vit_clt.choices import Rule
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, layer_list, token_rows
from vit_clt.hooks.activations import capture
from vit_clt.hooks.rows import ROW_GROUPS
from vit_clt.progress import Progress
from vit_clt.readouts.class_names import class_number
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder


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
    """Statistics of every feature of these layers on these images, in one pass, batch by batch.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        images: ImageData, a tensor "image 3 height width", or batches. They are read once more
            when a page shows some of them.
        layers: source layers; all by default.
        zs: the classifier whose logits direct effects are measured on, or None for no effects.
        effect_images: number of first images that effects are measured on.
        top: number of most active images kept of each feature, from which purity is computed.
        seed: seed of the images drawn at random.
        progress: show progress bars.

    Raises:
        InputError: there are no images, a layer or number is out of range, the CLT is of another
            model, or effects are asked of a model that does not pool the class token alone.
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
    tallies = {s: FeatureTally(n_features, cfg.rows, top, turns) for s in sources}
    squares = torch.zeros(N_GROUPS, cfg.n_layers, dtype=torch.float64)
    labels: list[Tensor] = []
    done = 0
    with Progress(total=n, desc="feature statistics", unit=" images", disable=not progress) as bar:
        for batch, batch_labels in data:
            activations = capture(vit, batch.to(clt.b_enc.device))
            for kind in cfg.rows.kinds[:-1]:  # all but "all"
                y = activations.y[:, :, token_rows(kind, cfg.rows)]
                squares[ROW_GROUPS[kind]] += y.double().square().sum((1, 2, 3)).cpu()
            for s in sources:
                tallies[s].add(active_codes(clt.encode(activations.x[s], layer=s)), done)
            labels.append(batch_labels.cpu())
            done += len(batch)
            bar.update(len(batch))
    # 0 / 0 for a group that the model does not have
    n_rows = torch.tensor(cfg.rows.sizes, dtype=torch.float64) * n
    norms = (squares / n_rows[:, None]).sqrt().numpy()
    return FeatureStatistics(
        vit, clt, data, sources, tallies, norms, torch.cat(labels).numpy(), effects, top, seed
    )


def feature_study(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot | None,
    *,
    features: Sequence[tuple[int, int]] = (),
    layers: Sequence[int] | None = None,
    rule: Rule | None = None,
    count: int = 32,
    class_name: str | int | None = None,
    effect_images: int = 200,
    top: int = 12,
    names: FeatureNames | None = None,
    seed: int = 0,
    progress: bool = False,
) -> FeatureGallery:
    """Study every feature of some layers, and choose those that get a page.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        data: the images.
        zs: the classifier whose logits direct effects are measured on, or None for no effects.
        features: (layer, feature) pairs that get a page.
        layers: source layers; default: every layer, or those of `features` if no rule is given.
        rule: the rule by which further features are chosen (`select_features`); default: "spread",
            or none where there are `features`.
        count: number of features per layer that the rule chooses.
        class_name: with the rule "effect", the class whose logit the features raise most.
        effect_images: number of first images that effects are measured on.
        top: number of most active images kept of each feature.
        names: names of features (`vit_clt.analysis.name_features`), which pages then show.
        seed: seed of all that is drawn at random.
        progress: show progress bars.

    Raises:
        InputError: a feature, layer or class does not exist, or what `select_features` and
            `feature_statistics` refuse.
    """
    chooser: Rule = rule or "spread"
    check_selection(chooser, count, class_name)
    if layers is None:
        named_alone = features and rule is None
        layers = [s for s, _ in features] if named_alone else range(vit.cfg.n_layers)
    sources = layer_list(layers, vit.cfg.n_layers)
    if features:
        check_features(features, sources, clt.config.n_features)
    if class_name is not None:
        class_number(data.class_names, class_name, "class_name")
    check_measured(chooser, zs is not None)
    stats = feature_statistics(
        vit,
        clt,
        data,
        layers=sources,
        zs=zs,
        effect_images=effect_images,
        top=top,
        seed=seed,
        progress=progress,
    )
    chosen = list(features)
    rules = ["those named"] if features else []
    if rule is not None or not features:
        chosen += select_features(stats, chooser, count, class_name=class_name)
        rules.append(f"at most {count} a layer, {rule_in_words(chooser, class_name)}")
    return feature_gallery(
        stats, list(dict.fromkeys(chosen)), "; ".join(rules), names=names, progress=progress
    )
