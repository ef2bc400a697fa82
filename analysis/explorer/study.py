"""The study behind the explorer: every part of it is a study of its own, on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int

from vit_clt.analysis.contributions.study import score_study
from vit_clt.analysis.explorer.images import ImageReadings, image_readings
from vit_clt.analysis.explorer.result import Explorer
from vit_clt.analysis.explorer.steered_images import ALWAYS_ON, Feature, steered_images
from vit_clt.analysis.explorer.verdict import Verdict
from vit_clt.analysis.features.choice import RULES, select_features
from vit_clt.analysis.features.gallery import FeatureGallery, feature_gallery
from vit_clt.analysis.features.names import FeatureNames
from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.analysis.features.study import feature_statistics
from vit_clt.analysis.fit.cascade_study import cascade
from vit_clt.analysis.fit.gate import measure_fit
from vit_clt.analysis.graphs.agreement import check_interventions
from vit_clt.analysis.graphs.group_file import NodeGroups
from vit_clt.analysis.graphs.grouping import COSINE, check_grouping
from vit_clt.analysis.graphs.result import GraphStudy
from vit_clt.analysis.graphs.study import graph_study
from vit_clt.analysis.naming.study import name_features
from vit_clt.analysis.naming.vocabulary import Vocabulary
from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.choices import KEPT_BYTES, GroupRule
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.readouts.base import Classifier
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder

STEERED = 6
"""Features of each graph that are steered: those with the largest total effects."""
_MAPS = 2**30  # bytes of activation maps at a time
_EXAMPLES = 24  # images of a feature's page, at most


@torch.no_grad()
def explore(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier | None = None,
    *,
    count: int | None = None,
    graphs: int = 12,
    interventions: int = 16,
    group: NodeGroups | GroupRule | None = None,
    group_cosine: float = COSINE,
    top: int = 12,
    effect_images: int = 200,
    vocabulary: Vocabulary | None = None,
    verdict: Verdict | None = None,
    clt_name: str = "in memory",
    links: Mapping[str, str] | None = None,
    kept_bytes: int = KEPT_BYTES,
    seed: int = 0,
    progress: bool = False,
) -> Explorer:
    """Linked pages of a CLT: heatmap, features, images, graphs, and steering on single images.

    Args:
        vit: the teacher, with no hooks attached, loaded with its preprocessing.
        clt: its transcoder.
        data: the images; every one has a page.
        classifier: the readout of their classes; by default prompts made of `data.class_names`,
            where there are any and the model has a text tower. Without one there are no answers;
            class effects, graphs and steering need prompts.
        count: features of each layer that have a page, spread over how often they fire; by default
            all that fire, or as many as keep their activation maps below 1 GiB. Features that are
            steered have one too.
        graphs: number of images that have a graph and steering (`choose_images`).
        interventions: features silenced in each of these images to check its graph.
        group: groups of nodes that the pages of graphs begin with, as in `graph_study`; "name" goes
            by the names of `vocabulary`.
        group_cosine: as in `graph_study`.
        top: most active images kept of each feature.
        effect_images: number of first images that class effects are measured on.
        vocabulary: texts that features are named with (`vit_clt.analysis.name_features`); without
            one they have no names.
        verdict: the verdict of an audit of this CLT (`read_verdict`), which stands on every page.
        clt_name: what the CLT is called.
        links: pages of other studies to link to: title and address.
        kept_bytes: the most bytes of codes that scores keep between their passes over the images.
        seed: seed of all that is drawn at random.
        progress: show progress bars.

    Raises:
        InputError: a number is out of range, the classifier has other classes than the images, the
            CLT is of another model, or `vit` has a hook or no preprocessing.
    """
    check_fits(vit, clt)
    _check_numbers(count, graphs, interventions)
    # names are not there yet; with a vocabulary there will be some, or none that hold
    check_grouping(group, group_cosine, None if vocabulary is None else {})
    pixels(vit, data.batch([0])[0])  # what cannot be shown is refused before the long passes
    if classifier is None and vit.has_text_tower and data.class_names:
        classifier = ZeroShot(vit, data.class_names)
    if classifier is not None and list(classifier.class_names) != list(data.class_names):
        raise InputError(
            "classifier",
            f"has {len(classifier.class_names)} classes, which are not the {len(data.class_names)} "
            "of the images; expected a readout of the images' own classes.",
        )
    zs = classifier if isinstance(classifier, ZeroShot) else None
    no_graphs = why_no_graphs(vit, clt, zs)
    has_effects = vit.cfg.family == "open_clip" and vit.cfg.pools_cls
    stats = feature_statistics(
        vit,
        clt,
        data,
        zs=zs if has_effects else None,
        effect_images=effect_images,
        top=top,
        seed=seed,
        progress=progress,
    )
    names = None
    if vocabulary is not None:
        names = name_features(vit, clt, data, vocabulary, seed=seed, progress=progress)
    readings = image_readings(vit, clt, data, classifier, progress=progress)
    graph_part: GraphStudy | None = None
    steered = []
    if zs is not None and no_graphs is None and graphs:
        query = choose_images(readings, stats.labels, graphs)
        graph_part = graph_study(
            vit,
            clt,
            data,
            zs,
            query,
            interventions=interventions,
            group=group,
            group_cosine=group_cosine,
            feature_names=None if names is None else names.texts,
            clt_name=clt_name,
            seed=seed,
            progress=progress,
        )
        rates = {
            s: tally.counts.images.numpy() / stats.n_images for s, tally in stats.tallies.items()
        }
        chosen = {row: _to_steer(graph_part, i, rates) for i, row in enumerate(query)}
        steered = steered_images(vit, clt, data, zs, chosen, rates, progress=progress)
    replaced = None
    if classifier is not None and (stats.labels >= 0).all():
        kinds = vit.cfg.rows.kinds
        replaced = cascade(
            vit, clt, data, classifier, tokens=kinds, first_layers=[0], seed=seed, progress=progress
        )
    named = [(each.layer, each.feature) for image in steered for each in image.features]
    return Explorer(
        clt=clt_name,
        scores=score_study(
            vit, {clt_name: clt}, data, kept_bytes=kept_bytes, seed=seed, progress=progress
        ),
        gallery=_gallery(stats, names, count, named, progress),
        readings=readings,
        cascade=replaced,
        graphs=graph_part,
        no_graphs=no_graphs if graph_part is None else None,
        steered=steered,
        fit=measure_fit(vit, clt, data, progress=progress),
        verdict=verdict,
        links=links or {},
    )


def why_no_graphs(vit: HookedViT, clt: CrossLayerTranscoder, zs: ZeroShot | None) -> str | None:
    """Why images of this model have no graphs; None where they have."""
    if vit.cfg.family != "open_clip" or not vit.cfg.pools_cls:
        return "Graphs need a ViT of open_clip that pools the class token."
    if zs is None:
        return "Graphs need a text tower, and the names of the classes (--class-names)."
    if clt.config.skip:
        return "A CLT with a skip connection has no graphs: what it passes on is no feature."
    return None


def choose_images(readings: ImageReadings, labels: Int[np.ndarray, " image"], n: int) -> list[int]:
    """Images to take apart: of every class in turn those that the model is least sure of.

    On an image with a certain answer no single feature changes much. With fewer images than
    classes they are the least sure of all classes' first ones. Where no label is known, the image
    with the lowest probability of any class is the least sure; beside labelled images those
    without a label are left out.

    Args:
        readings: the answers.
        labels: label of each image; -1 where unknown.
        n: number of images; fewer where there are fewer.
    """
    assert readings.probabilities is not None
    assert readings.of_label is not None
    highest = readings.probabilities[:, 0]
    sure = np.where(np.isnan(readings.of_label), highest, readings.of_label)
    ranked = np.argsort(sure, kind="stable")
    if (labels >= 0).any():
        ranked = ranked[labels[ranked] >= 0]
    turns: list[tuple[int, float, int]] = []
    seen: dict[int, int] = {}
    for row in ranked.tolist():
        label = int(labels[row])
        turns.append((seen.get(label, 0), float(sure[row]), row))
        seen[label] = seen.get(label, 0) + 1
    return [row for *_, row in sorted(turns)[:n]]


def _check_numbers(count: int | None, graphs: int, interventions: int) -> None:
    if count is not None and count < 1:
        raise InputError("count", f"is {count}; expected at least 1.")
    if graphs < 0:
        raise InputError("graphs", f"is {graphs}; expected 0 or more.")
    check_interventions(interventions)


def _gallery(
    stats: FeatureStatistics,
    names: FeatureNames | None,
    count: int | None,
    named: Sequence[Feature],
    progress: bool,
) -> FeatureGallery:
    """Pages of the features that are named, and of all that fire or as many as asked for."""
    n_tokens, n_layers = stats.vit.cfg.n_tokens, len(stats.layers)
    room = _MAPS // (_EXAMPLES * 4 * n_tokens * n_layers)
    if count is None and stats.clt.config.n_features > room:
        count = max(1, room)
    if count is None:
        rule = "all that fire"
        chosen = [
            (s, i)
            for s in stats.layers
            for i in np.flatnonzero(stats.tallies[s].counts.images.numpy()).tolist()
        ]
    else:
        rule = f"at most {count} a layer, {RULES['spread']}; and those steered"
        chosen = list(dict.fromkeys([*select_features(stats, "spread", count), *named]))
    return feature_gallery(stats, chosen, rule, names=names, progress=progress)


def _to_steer(
    study: GraphStudy, i: int, image_rates: Mapping[int, np.ndarray]
) -> Sequence[Feature]:
    """The features of a graph with the largest total effects, without those always on."""
    nodes = study.graphs[i].nodes
    features = nodes[nodes["kind"] == "feature"].assign(size=lambda f: f["total"].abs())
    summed = features.groupby(["layer", "feature"])["size"].sum().sort_values(ascending=False)
    found = [(int(s), int(f)) for s, f in summed.index]
    return [(s, f) for s, f in found if image_rates[s][f] <= ALWAYS_ON][:STEERED]
