"""The study behind the explorer: every part of it is a study of its own, on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int

from vit_clt.analysis.contributions.study import score_study
from vit_clt.analysis.explorer.images import ImageReadings, image_readings
from vit_clt.analysis.explorer.result import Explorer
from vit_clt.analysis.explorer.steered_images import Feature, steered_images
from vit_clt.analysis.explorer.verdict import Verdict
from vit_clt.analysis.features.gallery import FeatureGallery, feature_gallery
from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.analysis.features.study import feature_statistics
from vit_clt.analysis.fit.cascade_study import cascade
from vit_clt.analysis.fit.gate import measure_fit
from vit_clt.analysis.graphs.result import GraphStudy
from vit_clt.analysis.graphs.study import graph_study
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder

STEERED = 6
"""Features of each graph that are steered: those with the largest total effects."""


@torch.no_grad()
def explore(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot | None = None,
    *,
    count: int | None = None,
    graphs: int = 12,
    interventions: int = 16,
    top: int = 12,
    effect_images: int = 200,
    verdict: Verdict | None = None,
    clt_name: str = "in memory",
    links: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Explorer:
    """Linked pages of a CLT: heatmap, features, images, graphs, and steering on single images.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: the images; every one has a page.
        zs: the zero-shot classifier of their classes; by default made of `data.class_names`, where
            there are any and the model has a text tower. Without one there are no answers, class
            effects, graphs or steering.
        count: features of each layer that have a page, spread over how often they fire; by default
            all that fire.
        graphs: number of images that have a graph and steering (`choose_images`).
        interventions: features silenced in each of these images to check its graph.
        top: most active images kept of each feature.
        effect_images: number of first images that class effects are measured on.
        verdict: the verdict of an audit of this CLT (`read_verdict`), which stands on every page.
        clt_name: what the CLT is called.
        links: pages of other studies to link to: title and address.
        seed: seed of all that is drawn at random.
        progress: show progress bars.

    Raises:
        InputError: a number is out of range, the CLT is of another model, or `vit` has a hook.
    """
    check_fits(vit, clt)
    if count is not None and count < 1:
        raise InputError("count", f"is {count}; expected at least 1.")
    if graphs < 0:
        raise InputError("graphs", f"is {graphs}; expected 0 or more.")
    no_graphs = why_no_graphs(vit, clt, data)
    if zs is None and why_no_answers(vit, data) is None:
        zs = ZeroShot(vit, data.class_names)
    has_effects = zs is not None and vit.cfg.family == "open_clip" and vit.cfg.pools_cls
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
    gallery = _gallery(stats, count, progress)
    readings = image_readings(vit, clt, data, zs, progress=progress)
    graph_part: GraphStudy | None = None
    steered = []
    if zs is not None and no_graphs is None and graphs:
        query = choose_images(readings, gallery.labels, graphs)
        graph_part = graph_study(
            vit,
            clt,
            data,
            zs,
            query,
            interventions=interventions,
            clt_name=clt_name,
            seed=seed,
            progress=progress,
        )
        chosen = {row: _to_steer(graph_part, i) for i, row in enumerate(query)}
        steered = steered_images(vit, clt, data, zs, chosen, seed=seed, progress=progress)
    replaced = None
    if zs is not None and (gallery.labels >= 0).all():
        kinds = vit.cfg.rows.kinds
        replaced = cascade(
            vit, clt, data, zs, tokens=kinds, first_layers=[0], seed=seed, progress=progress
        )
    return Explorer(
        clt=clt_name,
        scores=score_study(vit, {clt_name: clt}, data, seed=seed, progress=progress),
        gallery=gallery,
        readings=readings,
        cascade=replaced,
        graphs=graph_part,
        no_graphs=no_graphs if graph_part is None else None,
        steered=steered,
        fit=measure_fit(vit, clt, data, progress=progress),
        verdict=verdict,
        links=links or {},
    )


def why_no_answers(vit: HookedViT, data: ImageData) -> str | None:
    """Why classes cannot be read by prompts; None where they can."""
    if vit.has_text_tower and data.class_names:
        return None
    return "Not read: answers need a text tower and the names of the classes."


def why_no_graphs(vit: HookedViT, clt: CrossLayerTranscoder, data: ImageData) -> str | None:
    """Why images of this model have no graphs; None where they have."""
    if vit.cfg.family != "open_clip" or not vit.cfg.pools_cls:
        return "Graphs need a ViT of open_clip that pools the class token."
    if why_no_answers(vit, data):
        return "Graphs need a text tower and the names of the classes."
    if clt.config.skip:
        return "A CLT with a skip connection has no graphs: what it passes on is no feature."
    return None


def choose_images(readings: ImageReadings, labels: Int[np.ndarray, " image"], n: int) -> list[int]:
    """Images to take apart: of every class in turn those that the model is least sure of.

    On an image with a certain answer no single feature changes much. Where labels are unknown,
    the image with the lowest probability of any class is the least sure.

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
    by_class = {label: ranked[labels[ranked] == label] for label in sorted(set(labels.tolist()))}
    turns = [
        (turn, label, int(rows[turn]))
        for label, rows in by_class.items()
        for turn in range(min(n, len(rows)))
    ]
    return [row for *_, row in sorted(turns)[:n]]


def _gallery(stats: FeatureStatistics, count: int | None, progress: bool) -> FeatureGallery:
    from vit_clt.analysis.features.choice import RULES, select_features

    if count is not None:
        chosen = select_features(stats, "spread", count)
        return feature_gallery(
            stats, chosen, f"at most {count} a layer, {RULES['spread']}", progress=progress
        )
    chosen = [
        (s, i)
        for s in stats.layers
        for i in np.flatnonzero(stats.tallies[s].counts.images.numpy()).tolist()
    ]
    return feature_gallery(stats, chosen, "all that fire", progress=progress)


def _to_steer(study: GraphStudy, i: int) -> Sequence[Feature]:
    nodes = study.graphs[i].nodes
    features = nodes[nodes["kind"] == "feature"].assign(size=lambda f: f["total"].abs())
    summed = features.groupby(["layer", "feature"])["size"].sum()
    return [(int(s), int(f)) for s, f in summed.nlargest(STEERED).index]
