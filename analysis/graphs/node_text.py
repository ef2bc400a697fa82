"""What figures of graphs say of a node or a group, as plotly's text."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd

from vit_clt.analysis.graphs.graph_result import AttributionGraph, patch_name
from vit_clt.analysis.stats.names import Texts, feature_text

_LISTED = 12  # members of a group that its hover text names
_LONGEST = 24  # characters of a group's name


def label(row: dict[str, Any], names: Texts) -> str:
    """The name of a row of `FoldedGraph.nodes`, as plotly's text."""
    if row["kind"] == "group":
        name = row["group"]
        return html.escape(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…")
    if row["kind"] == "feature":
        text = feature_text(int(row["layer"]), int(row["feature"]), names)
        return html.escape(f"feature {text}")
    return {
        "logit": "logit",
        "error": f"error node of layer {row['layer']}",
        "patch": "patch embedding",
        "bias": "class token, positions and all biases",
    }[row["kind"]]


def hover(row: dict[str, Any], graph: AttributionGraph) -> str:
    """What hovering over a row of `FoldedGraph.nodes` says.

    Args:
        row: the row.
        graph: the graph that was folded.
    """
    facts, where = graph.metadata, ""
    if row["kind"] == "group":
        return _group_hover(row, graph)
    if not pd.isna(row["token"]):
        name = patch_name(int(row["token"]), facts.patch_grid)
        where = ", CLS row" if name == "CLS" else f", patch ({name.replace(',', ', ')})"
    if row["kind"] == "logit":
        return f"{facts.target}<br>logit {row['value']:.4g}"
    head = label(row, graph.names)
    value = {"feature": "activation", "error": "norm", "patch": "norm"}.get(row["kind"])
    lines = [head + where]
    if value:
        lines.append(f"{value} {row['value']:.4g}")
    lines.append(f"direct effect on the logit {row['effect']:+.4g}")
    if not pd.isna(row["total"]):
        lines.append(f"with later features {row['total']:+.4g}")
    return "<br>".join([*lines, f"influence {row['influence']:.4g}"])


def _group_hover(row: dict[str, Any], graph: AttributionGraph) -> str:
    ids = graph.node_ids()
    members = [ids[node] for node in row["members"]]
    lines = [f"group {html.escape(row['group'])}: {len(members)} nodes"]
    if not pd.isna(row["value"]):
        lines.append(f"sum of activations {row['value']:.4g}")
    lines.append(f"sum of direct effects on the logit {row['effect']:+.4g}")
    lines += [f"sum of influence {row['influence']:.4g}", *members[:_LISTED]]
    return "<br>".join([*lines, *(["..."] if len(members) > _LISTED else [])])
