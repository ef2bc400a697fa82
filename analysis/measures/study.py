"""The study `feature_scores`: the same measures of CLTs and of what they are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.features.effects import class_effects
from vit_clt.analysis.measures.absorption import absorption, read_rows, shuffled
from vit_clt.analysis.measures.dictionaries import (
    CLTFeatures,
    Dictionary,
    Neurons,
    PrincipalComponents,
)
from vit_clt.analysis.measures.gather import Gathered, UnitActivations, gather
from vit_clt.analysis.measures.localization import expected_morans_i
from vit_clt.analysis.measures.monosemanticity import mean_cosine, monosemanticity
from vit_clt.analysis.measures.overlap import KINDS, CoveredPatches
from vit_clt.analysis.measures.probing import (
    LabelledActivations,
    full_probe,
    shown_in_both,
    sparse_probes,
)
from vit_clt.analysis.measures.scores import MIN_IMAGES, FeatureScores, Floors
from vit_clt.analysis.measures.stability import check_same_shape, stability
from vit_clt.analysis.retrieval.descriptors import untrained
from vit_clt.analysis.stats.auc import auc, ranks
from vit_clt.analysis.stats.halves import random_images
from vit_clt.choices import KEPT_BYTES
from vit_clt.data.forms import check_prepared
from vit_clt.data.hierarchies import Hierarchy, check_hierarchy
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, layer_list
from vit_clt.layers_together import layers_together
from vit_clt.progress import Progress
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder

UNTRAINED, NEURONS, COMPONENTS = "untrained CLT", "neurons", "principal components"
RANDOM_PARENTS = 3
"""Draws of random parents, the floor of absorption."""
_ABSORPTION = ("dictionary", "layer", "parent", "child", "n", "full", "fraction", "main")


@torch.no_grad()
def feature_scores(
    vit: HookedViT,
    clts: Mapping[str, CrossLayerTranscoder],
    images: ImageData | Tensor | Iterable[Any],
    train: ImageData | None = None,
    *,
    zs: ZeroShot | None = None,
    layers: Sequence[int] | None = None,
    embeddings: Float[Tensor, "image d_embed"] | None = None,
    embedded_by: str = "the teacher",
    seed_clts: Mapping[str, CrossLayerTranscoder] | None = None,
    hierarchy: Hierarchy | None = None,
    effect_images: int = 200,
    kept_bytes: int = KEPT_BYTES,
    seed: int = 0,
    progress: bool = False,
) -> FeatureScores:
    """Measure the features of CLTs, and by the same code what they are compared with.

    That is an untrained CLT of the first one's shape, the hidden units of the ViT's MLPs, and the
    principal components of x_l. Image-level activations are kept as sparse matrices: 8 bytes for
    each image on which a unit is active. The images are passed through the ViT once, or once for
    every group of layers of which `kept_bytes` hold these matrices.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clts: its transcoders, by name.
        images: ImageData, a tensor "image 3 height width", or batches; labelled for class AUCs.
        train: other labelled images, on which probes are fitted and classes and main features are
            chosen: as many random ones as there are images. Without them there are no probes,
            class AUCs and absorption.
        zs: the classifier whose logits effects are measured on, or None for no effects.
        layers: source layers; all by default.
        embeddings: of the images by another model; by default the teacher's own.
        embedded_by: what the caption calls that model.
        seed_clts: CLTs trained from other seeds, by name, whose features those of `clts` are
            matched with.
        hierarchy: parents of classes, for absorption.
        effect_images: number of first images that effects are measured on.
        kept_bytes: the most bytes of image-level activations, if all units were active, or those of
            one layer.
        seed: seed of all that is drawn at random.
        progress: show progress bars.

    Raises:
        InputError: there are no CLTs, one is of another model or shape, fewer than two images,
            embeddings of another number of images, a layer out of range, or a hierarchy that
            misses classes or comes without training images.
    """
    data = as_image_data(images)
    sources = _checked(vit, clts, data, train, embeddings, seed_clts or {}, hierarchy, layers)
    if train is not None:
        train = random_images(train, len(data), seed)
    dictionaries = _dictionaries(vit, clts, data if train is None else train, sources, seed)
    covered = CoveredPatches.of_images(data, vit.cfg.patch_grid, seed)
    n = len(data) + (0 if train is None else len(train))
    sizes = {l: 8 * n * sum(each.n_units(l) for each in dictionaries.values()) for l in sources}
    by_layer: dict[tuple[str, int], pd.DataFrame] = {}
    read: dict[tuple[str, int], list[dict[str, Any]]] = {}
    l0: dict[str, list[float]] = {name: [] for name in dictionaries}
    for together in layers_together(sizes, kept_bytes):
        found = gather(
            *(vit, dictionaries, data, together),
            maps=True,
            description="activations",
            covered=covered,
            progress=progress,
        )
        fitted = None
        if train is not None:
            fitted = gather(
                *(vit, dictionaries, train, together),
                maps=False,
                description="training images",
                progress=progress,
            )
        alike = found.embeddings if embeddings is None else embeddings.double().cpu().numpy()
        for name in Progress(list(dictionaries), "measures", disable=not progress):
            l0[name] += found.by_dictionary[name].l0.values()
            for layer in together:
                by_layer[name, layer], read[name, layer] = _measure_layer(
                    name, layer, found, fitted, alike, data.class_names, seed
                )
        # those of the next layers take their place in memory
        found.by_dictionary.clear()
        if fitted is not None:
            fitted.by_dictionary.clear()
    places = [(name, layer) for name in dictionaries for layer in sources]
    units = pd.concat([by_layer[place] for place in places], ignore_index=True)
    probes = [probe for place in places for probe in read[place]]
    _add_stability(units, clts, seed_clts or {}, sources, seed)
    if zs is not None:
        for name, clt in clts.items():
            effects = class_effects(
                vit, clt, data, zs, sources, n_images=effect_images, progress=progress
            )
            for layer in sources:
                at = (units["dictionary"] == name) & (units["layer"] == layer)
                units.loc[at, "effect"] = np.abs(effects.centred(layer)).mean(1)
    absorbed = pd.DataFrame(columns=[*_ABSORPTION, "full_random", "fraction_random"])
    if hierarchy is not None and train is not None:
        tables = [
            _absorption(vit, name, clt, train, data, sources, hierarchy, seed, progress)
            for name, clt in clts.items()
        ]
        absorbed = pd.concat(tables, ignore_index=True)
    ceiling = float("nan")
    if fitted is not None and shown_in_both(fitted.labels, found.labels):
        ceiling, _ = full_probe(
            LabelledActivations(fitted.embeddings, fitted.labels),
            LabelledActivations(found.embeddings, found.labels),
        )
    down, across = vit.cfg.patch_grid
    return FeatureScores(
        units=units,
        probes=pd.DataFrame(probes),
        absorption=absorbed,
        floors=Floors(mean_cosine(alike), expected_morans_i(down * across)),
        clts=list(clts),
        l0={name: float(np.mean(layers)) for name, layers in l0.items()},
        ceiling=ceiling,
        embedded_by=embedded_by,
        seeds=list(seed_clts or {}),
        effect_images=0 if zs is None else min(effect_images, len(data)),
        readout=None if zs is None else zs.name,
        data=data.name,
        split=data.split,
        n=len(data),
        trained_on=None if train is None else f"{len(train)} images of {train.name}",
        seed=seed,
    )


def _checked(
    vit: HookedViT,
    clts: Mapping[str, CrossLayerTranscoder],
    data: ImageData,
    train: ImageData | None,
    embeddings: Tensor | None,
    seed_clts: Mapping[str, CrossLayerTranscoder],
    hierarchy: Hierarchy | None,
    layers: Sequence[int] | None,
) -> list[int]:
    """The source layers, once the arguments are found to fit."""
    if not clts:
        raise InputError("clts", "is empty; expected at least one CLT.")
    for clt in (*clts.values(), *seed_clts.values()):
        check_fits(vit, clt)
        check_same_shape(next(iter(clts.values())), clt)
    for each in (data, train):
        if each is not None:
            check_prepared(vit, each)
    if len(data) < 2:
        raise InputError("data", "has 1 image; expected at least 2, as pairs are compared.")
    if embeddings is not None and len(embeddings) != len(data):
        raise InputError(
            "embeddings", f"are of {len(embeddings)} images; expected {len(data)}, as the data."
        )
    if hierarchy is not None:
        check_hierarchy(hierarchy, data.class_names)
        if train is None:
            raise InputError(
                "hierarchy", "is given without training images; expected some to fit probes on."
            )
    return layer_list(range(vit.cfg.n_layers) if layers is None else layers, vit.cfg.n_layers)


def _dictionaries(
    vit: HookedViT,
    clts: Mapping[str, CrossLayerTranscoder],
    fitted_on: ImageData,
    layers: Sequence[int],
    seed: int,
) -> dict[str, Dictionary]:
    first = next(iter(clts.values()))
    return {
        **{name: CLTFeatures(clt) for name, clt in clts.items()},
        UNTRAINED: CLTFeatures(untrained(first, seed)),
        NEURONS: Neurons(vit),
        COMPONENTS: PrincipalComponents.of_images(vit, fitted_on, layers),
    }


def _measure_layer(
    name: str,
    layer: int,
    found: Gathered,
    fitted: Gathered | None,
    alike: Float[np.ndarray, "image d_embed"],
    class_names: Sequence[str],
    seed: int,
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The rows of one layer's units, and of its probes."""
    units: UnitActivations = found.by_dictionary[name]
    values = units.images[layer].toarray()
    images = (values != 0).sum(0)
    enough = images >= MIN_IMAGES
    moran = units.maps[layer]
    columns: dict[str, Any] = {
        "dictionary": name,
        "layer": layer,
        "feature": np.arange(values.shape[1]),
        "images": images,
        "image_rate": images / len(values),
        "monosemanticity": np.where(enough, monosemanticity(np.abs(values), alike), np.nan),
        "morans_i": np.where(moran.images >= MIN_IMAGES, moran.mean(), np.nan),
        **_overlap(units, layer, class_names),
        "class": "",
        **dict.fromkeys(("class_auc", "stability", "stability_floor", "matched"), np.nan),
        "effect": np.nan,
    }
    probes: list[dict[str, Any]] = []
    if fitted is not None and shown_in_both(fitted.labels, found.labels):
        train = LabelledActivations(
            fitted.by_dictionary[name].images[layer].toarray(), fitted.labels
        )
        names = list(class_names) or [str(c) for c in range(int(found.labels.max()) + 1)]
        numbers = np.arange(len(names))[:, None]
        # images of no known class are in no class' group, and count with the rest
        on_train = auc(train.labels == numbers, ranks(np.abs(train.values)))
        label = np.nan_to_num(on_train).argmax(0)
        here = auc(found.labels == numbers, ranks(np.abs(values)))
        columns["class"] = np.where(enough, np.array(names)[label], "")
        columns["class_auc"] = np.where(enough, here[label, np.arange(len(label))], np.nan)
        probes = [
            {
                "dictionary": name,
                "layer": layer,
                "class": names[probe.label],
                **{key: value for key, value in vars(probe).items() if key != "label"},
            }
            for probe in sparse_probes(train, LabelledActivations(values, found.labels), seed)
        ]
    return pd.DataFrame(columns), probes


def _overlap(
    units: UnitActivations, layer: int, class_names: Sequence[str]
) -> dict[str, np.ndarray | float]:
    """The columns of the overlap with regions, NaN where there are none."""
    if not units.overlap:
        return {f"{kind}_{end}": np.nan for kind in KINDS for end in ("overlap", "overlap_floor")}
    columns: dict[str, np.ndarray | float] = {}
    names = np.array([*class_names, ""])
    for name, values in units.overlap[layer].scores().items():
        columns[name] = names[values] if name.endswith("category") else values
    return columns


def _add_stability(
    units: pd.DataFrame,
    clts: Mapping[str, CrossLayerTranscoder],
    seed_clts: Mapping[str, CrossLayerTranscoder],
    layers: Sequence[int],
    seed: int,
) -> None:
    """Fill in stability: means over the CLTs of other seeds, of features that are measured."""
    for name, clt in clts.items():
        others = [other for other in seed_clts.values() if other is not clt]
        for layer in layers if others else ():
            found = [stability(clt, other, layer, seed) for other in others]
            at = (units["dictionary"] == name) & (units["layer"] == layer)
            enough = units.loc[at, "images"].to_numpy() >= MIN_IMAGES
            for column, field in (
                *(("stability", "nearest"), ("stability_floor", "floor"), ("matched", "matched")),
            ):
                mean = np.mean([getattr(each, field).astype(float) for each in found], axis=0)
                units.loc[at, column] = np.where(enough, mean, np.nan)


def _absorption(
    vit: HookedViT,
    name: str,
    clt: CrossLayerTranscoder,
    train: ImageData,
    data: ImageData,
    layers: Sequence[int],
    hierarchy: Hierarchy,
    seed: int,
    progress: bool,
) -> pd.DataFrame:
    """Absorption at every target layer, beside that of random parents."""
    fitted = read_rows(vit, clt, train, layers, progress=progress)
    test = read_rows(vit, clt, data, layers, progress=progress)
    rng = np.random.default_rng(seed)
    random = [shuffled(hierarchy, rng) for _ in range(RANDOM_PARENTS)]
    rows = []
    for layer in layers:
        args = (clt, fitted, test, layer)
        floors = [each for h in random for each in absorption(*args, h, data.class_names)]
        floor = {
            f"{kind}_random": float(np.nanmean([getattr(each, kind) for each in floors]))
            for kind in ("full", "fraction")
        }
        for each in absorption(*args, hierarchy, data.class_names):
            main = " ".join(f"{s}:{i}" for s, i in each.main)
            rows.append({"dictionary": name, **vars(each), "main": main, **floor})
    return pd.DataFrame(rows)
