"""A graph with its groups folded: every group is one node, and edges are summed.

Of a group, the direct effect on the logit is the sum of its members'; so is an edge to or from it,
so that what reaches any target is what reaches its members, to the last digit of a sum. The value
is the sum of activations where all members are features (what its in-edges sum to, norms held and
dropped nodes included), and empty otherwise: norms do not add. So is the influence summed: a path
through two members counts in both, so that a group can have more influence than one node could.
The effect through other features is left empty, because members are among these features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vit_clt.analysis.graphs.graph_result import AttributionGraph


@dataclass(frozen=True)
class FoldedGraph:
    """The nodes and edges of a graph whose groups are folded."""

    nodes: pd.DataFrame
    """One row per node or group, in the order of their first members. Columns as of
    `AttributionGraph.nodes`, with kind "group", and: group (its name; None for a node), members
    (node numbers in the graph). Layer and token of a group say where it is drawn: the mean layer of
    its members, rounded, and the token row of the one of largest influence that has one."""
    edges: pd.DataFrame
    """One row per pair of rows of `nodes`. Columns: source, target, effect, influence, pairs (the
    number of edges summed), from_node and to_node (the ends in the graph, where it is one). An edge
    within a group has it as source and as target: without it in-edges would not sum."""


def fold(graph: AttributionGraph) -> FoldedGraph:
    """The graph with its groups folded; without groups, its own nodes and edges."""
    members = _members(graph)
    unit = {node: i for i, (_, nodes) in enumerate(members) for node in nodes}
    rows = [_unit_row(graph.nodes, name, nodes) for name, nodes in members]
    nodes = pd.DataFrame(rows).astype(dict.fromkeys(["layer", "token", "feature"], "Int64"))
    nodes.insert(0, "node", range(len(nodes)))
    ends = graph.edges.assign(
        from_node=graph.edges["source"],
        to_node=graph.edges["target"],
        source=graph.edges["source"].map(unit),
        target=graph.edges["target"].map(unit),
    )
    edges = ends.groupby(["source", "target"], sort=False, as_index=False).agg(
        effect=("effect", "sum"),
        influence=("influence", "sum"),
        pairs=("effect", "size"),
        from_node=("from_node", "first"),
        to_node=("to_node", "first"),
    )
    return FoldedGraph(nodes, edges)


def _members(graph: AttributionGraph) -> list[tuple[str | None, tuple[int, ...]]]:
    """Name and nodes of every row of the folded graph; the name is None for a single node."""
    group_of = {node: name for name, nodes in graph.groups.items() for node in nodes}
    found: dict[str | int, tuple[str | None, tuple[int, ...]]] = {}
    for node in range(len(graph.nodes)):
        name = group_of.get(node)
        key = node if name is None else name
        found.setdefault(key, (name, (node,) if name is None else tuple(graph.groups[name])))
    return list(found.values())


def _unit_row(nodes: pd.DataFrame, name: str | None, members: Sequence[int]) -> dict[str, object]:
    rows = nodes.iloc[list(members)]
    if name is None:
        (row,) = rows.drop(columns="node").to_dict("records")
        return {**row, "group": None, "members": tuple(members)}
    # inputs lie one below layer 0
    level = float(rows["layer"].fillna(-1).astype(float).mean())
    layer = int(np.floor(level + 0.5))
    placed = rows[rows["token"].notna()].sort_values("influence", ascending=False)
    return {
        "kind": "group",
        "layer": layer if layer >= 0 else pd.NA,
        "token": placed["token"].iloc[0] if len(placed) else pd.NA,
        "feature": pd.NA,
        "value": rows["value"].sum() if (rows["kind"] == "feature").all() else np.nan,
        "effect": rows["effect"].sum(),
        "total": np.nan,
        "influence": rows["influence"].sum(),
        "group": name,
        "members": tuple(members),
    }
