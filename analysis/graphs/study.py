"""The study of direct effects, attribution graphs and interventions, for some images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import torch

from vit_clt.analysis.graphs.agreement import check_interventions
from vit_clt.analysis.graphs.effects import class_direction, gather_effects
from vit_clt.analysis.graphs.graph import (
    KEEP,
    MAX_NODES,
    attribution_graph,
    check_size,
)
from vit_clt.analysis.graphs.graph_result import AttributionGraph
from vit_clt.analysis.graphs.group_file import NodeGroups
from vit_clt.analysis.graphs.grouping import (
    COSINE,
    check_grouping,
    groups_by_decoder,
    groups_by_hand,
    groups_by_name,
)
from vit_clt.analysis.graphs.norms import agreement_with_norms
from vit_clt.analysis.graphs.result import GraphStudy
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.stats.query import check_query
from vit_clt.choices import GroupRule, NormsChoice, check_choice
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.progress import Progress
from vit_clt.readouts.class_names import class_number
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder


@torch.no_grad()
def graph_study(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    query: Sequence[int],
    *,
    target: str = "predicted",
    contrast: str | None = None,
    max_nodes: int = MAX_NODES,
    keep: float | int = KEEP,
    norms: NormsChoice = "auto",
    interventions: int = 64,
    group: NodeGroups | GroupRule | None = None,
    group_cosine: float = COSINE,
    feature_names: Mapping[tuple[int, int], str] | None = None,
    clt_name: str = "in memory",
    seed: int = 0,
    progress: bool = False,
) -> GraphStudy:
    """Direct effects on a logit of each image, its graph, and their check by interventions.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: the images.
        zs: the zero-shot classifier whose logits are taken apart.
        query: the numbers of the images in `data`.
        target: "predicted" (the class with the highest logit), "label", or a class by name or
            number.
        contrast: a class whose logit is subtracted, by name or number.
        max_nodes: as in `attribution_graph`.
        keep: as in `attribution_graph`.
        norms: as in `attribution_graph`, or "auto" for those that the interventions support
            (`vit_clt.analysis.graphs.norms`).
        interventions: features silenced in each image, the n of `graph_agreement`.
        group: nodes that are drawn as one: names with the ids of nodes
            (`vit_clt.analysis.graphs.group_file`), "decoder" for features that write alike, or
            "name" for those of one name.
        group_cosine: with "decoder", the least mean cosine of decoders in a group.
        feature_names: names of features, by layer and number (`FeatureNames.texts`), which figures
            and tables show, and which "name" goes by.
        clt_name: what the CLT is called in captions.
        seed: seed of the random features that are silenced, and of intervals.
        progress: show progress bars.

    Raises:
        InputError: an image out of range or given twice, a class that does not exist, an image
            without the label asked for, a CLT or images of another model, a CLT silent on all the
            images, hooks on `vit`, a group with a node of no graph, or a number out of range.
    """
    check_fits(vit, clt)
    check_prepared(vit, data)
    check_size(max_nodes, keep)
    check_interventions(interventions)
    check_choice("norms", norms, get_args(NormsChoice))
    check_grouping(group, group_cosine, feature_names)
    check_query(query, data)
    other = None if contrast is None else class_number(zs.class_names, contrast, "contrast")
    by_image = target in ("predicted", "label")
    fixed = None if by_image else class_number(zs.class_names, target)
    images, labels = data.batch(list(query))
    images = images.to(next(vit.parameters()).device)
    logits = zs.logits(vit(images))
    classes = []
    for number, label, logit in zip(query, labels.tolist(), logits, strict=True):
        if target == "label" and not 0 <= label < len(zs.class_names):
            raise InputError(
                "target",
                f'is "label", but image {number} has {label}; expected a label from 0 to '
                f"{len(zs.class_names) - 1}.",
            )
        predicted = int(logit.argmax()) if target == "predicted" else label
        classes.append(predicted if fixed is None else fixed)
    directions = [class_direction(zs, label, other) for label in classes]
    names = [zs.class_names[label] for label in classes]
    if other is not None:
        names = [f"{name} − {zs.class_names[other]}" for name in names]
    titles = [
        f"image {number}"
        + (f" (label {zs.class_names[label]})" if 0 <= label < logits.shape[1] else "")
        for number, label in zip(query, labels.tolist(), strict=True)
    ]
    sources = [Sources(vit, clt, image) for image in images]
    pairs = list(zip(sources, directions, strict=True))
    taken, agreement, reason = agreement_with_norms(
        sources, directions, norms, n=interventions, seed=seed, progress=progress
    )
    bar = Progress(pairs, "attribution graphs", unit=" images", disable=not progress)
    graphs = [
        attribution_graph(
            *pair,
            max_nodes=max_nodes,
            keep=keep,
            norms=taken,
            image=f"{data.name}, {title}",
            target=name,
            clt_name=clt_name,
        )
        for pair, title, name in zip(bar, titles, names, strict=True)
    ]
    feature_names = feature_names or {}
    graphs = [graph.named(feature_names) for graph in graphs]
    graphs, grouping = _grouped(graphs, clt, group, group_cosine, feature_names)
    return GraphStudy(
        query=list(query),
        targets=names,
        titles=[f"{title}, logit of {name}" for title, name in zip(titles, names, strict=True)],
        floors=[_floor(logit, label, other) for logit, label in zip(logits, classes, strict=True)],
        pictures=pixels(vit, images),
        effects=gather_effects(sources, directions, taken),
        graphs=graphs,
        agreement=agreement,
        l0=float(np.mean([graph.metadata.l0 for graph in graphs])),
        data=data.name,
        split=data.split,
        subject=Subject.of(vit, clt, clt_name),
        readout=zs.name,
        max_nodes=max_nodes,
        keep=keep,
        contrasted=contrast is not None,
        norms_reason=reason,
        grouping=grouping,
    )


def _grouped(
    graphs: list[AttributionGraph],
    clt: CrossLayerTranscoder,
    group: NodeGroups | GroupRule | None,
    cosine: float,
    names: Mapping[tuple[int, int], str],
) -> tuple[list[AttributionGraph], str | None]:
    """The graphs with their groups, and how these were found."""
    if group is None:
        return graphs, None
    if group == "decoder":
        found = [groups_by_decoder(graph, clt, cosine) for graph in graphs]
        how = f"features of one decoder cluster (average linkage, mean cosine at least {cosine:g})"
    elif group == "name":
        found, how = [groups_by_name(graph, names) for graph in graphs], "features of one name"
    else:
        found, how = groups_by_hand(graphs, group), "by hand"
    return [graph.grouped(each) for graph, each in zip(graphs, found, strict=True)], how


def _floor(logits: torch.Tensor, label: int, contrast: int | None) -> float:
    others = [c for c in range(len(logits)) if c != label]
    if not others:
        return float("nan")
    mean = float(logits[others].mean())
    return mean if contrast is None else mean - float(logits[contrast])
