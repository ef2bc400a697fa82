"""Supernodes: rules that put nodes of a graph into named groups.

A rule gives a `NodeGroups`, which `AttributionGraph.grouped` takes. A group has two nodes or more.

By name: features that have one name (a mapping from features to names is given).

By decoder: features that write alike. Feature a of layer s writes W_dec[s->l]_a to every target
l >= s (to l = s alone in a per-layer transcoder), in the direction of the sign of its code. With
T(a, b) the targets that both write to,

    cos(a, b) = sum_T <d_a^l, d_b^l> / sqrt(sum_T ||d_a^l||^2  sum_T ||d_b^l||^2),    d = sign(z) W,

0 where T is empty. Features are merged by average linkage: the two groups whose mean pairwise
cosine is highest, as long as it is at least `cosine`. A feature counts once, on however many token
rows it is a node, and all its nodes (of one sign) are in its group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.graphs.graph_result import AttributionGraph
from vit_clt.analysis.graphs.group_file import NodeGroups, check_ids
from vit_clt.choices import GroupRule, check_choice
from vit_clt.errors import InputError
from vit_clt.transcoder.model import CrossLayerTranscoder

COSINE = 0.5
"""Least mean cosine of the decoders of a group, by default."""


def check_grouping(
    group: NodeGroups | str | None,
    cosine: float,
    names: Mapping[tuple[int, int], str] | None = None,
) -> None:
    """Refuse groups that no graph can have.

    Args:
        group: names of groups with ids of nodes, a `GroupRule`, or None.
        cosine: of "decoder".
        names: of "name".

    Raises:
        InputError: as said.
    """
    if isinstance(group, str):
        check_choice("group", group, get_args(GroupRule))
        if group == "name" and names is None:
            raise InputError("group", 'is "name", but features have no names; expected names.')
    if group is not None and not isinstance(group, str):
        check_ids(group, "a mapping")
    if not 0 < cosine <= 1:
        raise InputError("group_cosine", f"is {cosine:g}; expected above 0 and at most 1.")


def groups_by_name(
    graph: AttributionGraph, names: Mapping[tuple[int, int], str]
) -> dict[str, list[str]]:
    """Features of one name, as a group of that name.

    Args:
        graph: the graph whose nodes are grouped.
        names: name of each feature, by its layer and number; features without one stay alone.
    """
    groups: dict[str, list[str]] = {}
    for row, node in zip(graph.nodes.itertuples(), graph.node_ids(), strict=True):
        if row.kind == "feature" and (name := names.get((int(row.layer), int(row.feature)))):
            groups.setdefault(name, []).append(node)
    return {name: nodes for name, nodes in groups.items() if len(nodes) > 1}


def groups_by_decoder(
    graph: AttributionGraph, clt: CrossLayerTranscoder, cosine: float = COSINE
) -> dict[str, list[str]]:
    """Features whose decoders point one way, named after the one of largest influence.

    Args:
        graph: the graph whose nodes are grouped.
        clt: the CLT whose features they are.
        cosine: least mean cosine of two groups that are merged; above 0, at most 1.

    Raises:
        InputError: the cosine is out of its range.
    """
    check_grouping("decoder", cosine)
    features = graph.nodes[graph.nodes["kind"] == "feature"]
    keys = [
        (int(r.layer), int(r.feature), 1 if r.value >= 0 else -1) for r in features.itertuples()
    ]
    distinct = sorted(set(keys))
    if not distinct:
        return {}
    cluster_of = dict(zip(distinct, _clusters(decoder_cosines(clt, distinct), cosine), strict=True))
    ids = graph.node_ids()
    members: dict[int, list[int]] = {}
    for node, key in zip(features["node"], keys, strict=True):
        members.setdefault(cluster_of[key], []).append(int(node))
    return {
        _name(graph.nodes, nodes): [ids[n] for n in nodes]
        for nodes in members.values()
        if len(nodes) > 1
    }


def decoder_cosines(
    clt: CrossLayerTranscoder, features: Sequence[tuple[int, int, int]]
) -> Float[Tensor, "feature feature"]:
    """Cosines of what features write, over the targets that both write to, in float64.

    Args:
        clt: the CLT.
        features: layer, number and sign of the code of each feature.
    """
    n_layers, d_model = clt.config.n_layers, clt.config.d_model
    written = torch.zeros(len(features), n_layers, d_model, dtype=torch.float64)
    reaches = torch.zeros(len(features), n_layers, dtype=torch.float64)
    for at, (layer, feature, sign) in enumerate(features):
        for target in clt.config.targets(layer):
            row = clt.decoder(layer, target)[feature].detach()
            written[at, target] = sign * row.double().cpu()
            reaches[at, target] = 1
    products = torch.einsum("ald,bld->ab", written, written)
    powers = written.square().sum(-1) @ reaches.T  # of a, over the targets of b
    sizes = (powers * powers.T).sqrt()
    return torch.where(sizes > 0, products / sizes, 0.0)


def _clusters(cosines: Float[Tensor, "feature feature"], cosine: float) -> list[int]:
    """The number of the cluster of each feature, by average linkage."""
    if len(cosines) == 1:
        return [1]
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distances = np.clip(1 - cosines.numpy(), 0, None)
    np.fill_diagonal(distances, 0)
    merges = linkage(squareform(distances, checks=False), "average")
    # merged at exactly this cosine belongs together, whatever rounding does
    return fcluster(merges, t=1 - cosine + 1e-12, criterion="distance").tolist()


def _name(nodes: pd.DataFrame, members: Sequence[int]) -> str:
    """ "7:76 and 2 more", after the feature of largest influence and the number of the others."""
    rows = nodes.iloc[list(members)]
    first = rows.loc[rows["influence"].idxmax()]
    lead = f"{first['layer']}:{first['feature']}{'' if first['value'] >= 0 else ' negative'}"
    others = len(set(zip(rows["layer"], rows["feature"], strict=True))) - 1
    return f"{lead} and {others} more" if others else f"{lead} on {len(rows)} rows"


def groups_by_hand(
    graphs: Sequence[AttributionGraph], given: NodeGroups
) -> list[dict[str, list[str]]]:
    """For each graph, those nodes of given groups that it has, where they are two or more.

    Args:
        graphs: the graphs.
        given: names of groups, with ids of nodes (`vit_clt.analysis.graphs.group_file`).

    Raises:
        InputError: an id is none, or stands for no node of any graph.
    """
    check_grouping(given, COSINE)
    found = [_present(graph, given) for graph in graphs]
    for ids in given.values():
        for node in ids:
            if not any(node in known for known, _ in found):
                raise InputError(
                    "group", f'holds "{node}", which is a node of no graph; see nodes.csv.'
                )
    return [groups for _, groups in found]


def _present(graph: AttributionGraph, given: NodeGroups) -> tuple[set[str], dict[str, list[str]]]:
    """Which of the given ids stand for nodes of the graph, and the groups of these."""
    ids, present, groups = graph.node_ids(), set(), {}
    for name, wanted in given.items():
        nodes = []
        for each in wanted:
            matching = [node for node in ids if each in (node, node.partition("@")[0])]
            present |= {each} if matching else set()
            nodes += matching
        if len(nodes) > 1:
            groups[name] = nodes
    return present, groups
