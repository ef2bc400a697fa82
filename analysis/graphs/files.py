"""Attribution graphs as JSON text, and read back from it.

    {"schema": "vit-clt attribution graphs 3",
     "graphs": [{"facts": {...}, "nodes": [{...}, ...], "edges": [{...}, ...],
                 "carried": [{...}, ...], "groups": {"NAME": [1, 4], ...},
                 "names": {"7:12": "frog", ...}}, ...]}

Facts are the fields of `GraphMetadata`, nodes, edges and carried have the columns of
`AttributionGraph`, groups hold numbers of nodes, and names are those of features; docs/graphs.md
lists them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from vit_clt.analysis.graphs.graph_result import (
    CARRIED,
    AttributionGraph,
    Carrier,
    GraphMetadata,
    Kind,
)
from vit_clt.errors import InputError
from vit_clt.inputs import read_json, reading
from vit_clt.typed import made

SCHEMA = "vit-clt attribution graphs 3"
MAX_BYTES = 1_000_000_000
"""Largest file that is read."""
_WHOLE = ("layer", "token", "feature")
_NODE = ("node", "kind", *_WHOLE, "value", "effect", "total", "influence")
_EDGE = ("source", "target", "effect", "influence")


def graphs_json(graphs: Sequence[AttributionGraph]) -> str:
    """The text of the file; a value that does not exist is null."""
    document = {
        "schema": SCHEMA,
        "graphs": [
            {
                "facts": asdict(graph.metadata),
                "nodes": [_plain(row) for row in graph.nodes.to_dict("records")],
                "edges": [_plain(row) for row in graph.edges.to_dict("records")],
                "carried": [_plain(row) for row in graph.carried.to_dict("records")],
                "groups": {name: list(nodes) for name, nodes in graph.groups.items()},
                "names": {f"{s}:{i}": text for (s, i), text in graph.names.items()},
            }
            for graph in graphs
        ],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def load_graphs(path: Path | str) -> list[AttributionGraph]:
    """The graphs of a file.

    Raises:
        InputError: the file does not exist or has another schema, or its nodes and edges are no
            graph: a column is missing or unknown, nodes are not numbered in order, an edge names
            a node that is not there or does not lead upwards, a part is of no edge, or a group
            holds what is no node.
    """
    document = read_json(path, MAX_BYTES)
    schema = document.get("schema")
    if schema != SCHEMA:
        found = json.dumps(schema)[:80]
        raise InputError(f'{path} has schema {found}; expected "{SCHEMA}", of a new vit-clt graph.')
    with reading(path, "the nodes and edges of graphs", problem="is no attribution graph"):
        return [_graph(graph) for graph in document["graphs"]]


def _graph(document: dict[str, Any]) -> AttributionGraph:
    facts, nodes, edges = document["facts"], document["nodes"], document["edges"]
    _check_columns("facts", [facts], [field.name for field in fields(GraphMetadata)])
    _check_columns("nodes", nodes, _NODE)
    _check_columns("edges", edges, _EDGE)
    if [node["node"] for node in nodes] != list(range(len(nodes))):
        raise ValueError("nodes are not numbered from 0 on")
    kinds = [node["kind"] for node in nodes]
    if unknown := set(kinds) - set(get_args(Kind)):
        raise ValueError(f"a node has kind {min(unknown)!r}")
    if kinds[:1] != ["logit"] or "logit" in kinds[1:]:
        raise ValueError("node 0 is not the one logit")
    for edge in edges:
        ends = edge["source"], edge["target"]
        if not all(0 <= end < len(nodes) for end in ends):
            raise ValueError(f"an edge joins {ends}, of which there is no such node")
        source, target = (nodes[end] for end in ends)
        if target["kind"] == "feature":
            below = source["layer"] is None or source["layer"] < target["layer"]
            upwards = source["kind"] != "logit" and below
        else:
            upwards = target["kind"] == "logit" and source["kind"] != "logit"
        if not upwards:
            raise ValueError(f"the edge {ends} does not lead upwards")
        if not all(math.isfinite(edge[name]) for name in ("effect", "influence")):
            raise ValueError(f"the edge {ends} has no finite effect and influence")
    _check_carried(document["carried"], edges)
    frame = pd.DataFrame(nodes, columns=list(_NODE))
    numbers = dict.fromkeys(["value", "effect", "total", "influence"], float)
    return AttributionGraph(
        made(GraphMetadata, facts),
        frame.astype({**dict.fromkeys(_WHOLE, "Int64"), **numbers}),
        pd.DataFrame(edges, columns=list(_EDGE)),
        pd.DataFrame(document["carried"], columns=list(CARRIED)).astype(
            {"layer": "Int64", "head": "Int64", "effect": float}
        ),
        _groups(document["groups"]),
        _names(document["names"]),
    )


def _groups(groups: Any) -> dict[str, tuple[int, ...]]:
    for name, nodes in groups.items():
        if not isinstance(nodes, list) or not all(type(node) is int for node in nodes):
            raise ValueError(f"the group {name[:40]!r} is no list of numbers")
    return {name: tuple(nodes) for name, nodes in groups.items()}


def _names(names: Any) -> dict[tuple[int, int], str]:
    found = {}
    for key, text in names.items():
        layer, _, feature = key.partition(":")
        if not (layer.isdecimal() and feature.isdecimal() and isinstance(text, str)):
            raise ValueError(f"the name of {key[:40]!r} is not a text of layer:feature")
        found[int(layer), int(feature)] = text
    return found


def _check_carried(parts: Sequence[dict[str, Any]], edges: Sequence[dict[str, Any]]) -> None:
    _check_columns("carried", parts, CARRIED)
    known = {(edge["source"], edge["target"]) for edge in edges}
    for part in parts:
        ends = part["source"], part["target"]
        if ends not in known:
            raise ValueError(f"a part is of the edge {ends}, which is not there")
        named = [part[name] is not None for name in ("layer", "head")]
        if part["by"] not in get_args(Carrier) or named != [part["by"] == "head"] * 2:
            raise ValueError(f"a part of the edge {ends} is carried by {part['by']!r}")
        if not math.isfinite(part["effect"]):
            raise ValueError(f"a part of the edge {ends} has no finite effect")


def _check_columns(name: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    for row in rows:
        if set(row) != set(columns):
            odd = min(set(row) ^ set(columns))
            raise ValueError(f"{name} have {odd!r} too many or missing")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {str(name): None if pd.isna(value) else value for name, value in row.items()}
