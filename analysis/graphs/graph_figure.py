"""An attribution graph as a figure: layers bottom to top, token rows left to right."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_clt.analysis.graphs.folding import FoldedGraph, fold
from vit_clt.analysis.graphs.graph_result import AttributionGraph, GraphMetadata, patch_name
from vit_clt.analysis.graphs.node_text import hover, label
from vit_clt.analysis.reporting.pictures import lay_picture
from vit_clt.analysis.reporting.style import BLUE, GREY, INK, ORANGE, finish

MAX_EDGES = 200
"""Edges drawn; the table has all."""
_SYMBOLS = {
    "feature": "circle",
    "error": "diamond",
    "patch": "square",
    "bias": "x",
    "logit": "star",
    "group": "hexagon",
}
_NAMES = {
    "feature": "feature",
    "error": "error node",
    "patch": "patch embedding",
    "bias": "all biases",
    "logit": "logit",
    "group": "group of nodes",
}
_WIDTHS = (0.7, 1.6, 3.2)  # of edges, in pixels, by influence
_SPLIT = 0.74  # of the width, for the graph
_TOP, _BOTTOM, _LAYER = 145, 92, 46


def graph_figure(
    graph: AttributionGraph,
    picture: UInt8[np.ndarray, "height width 3"] | None = None,
    patches: Float[Tensor, " patch"] | None = None,
) -> go.Figure:
    """Nodes and their strongest edges; beside them the image and its patches' direct effects.

    Groups are drawn as one node each, with their summed edges; hovering lists their members.

    Args:
        graph: what is drawn.
        picture: the image, as `pictures.pixels` gives it; without it the graph is drawn alone.
        patches: direct effect of every patch embedding on the logit, given with `picture`.
    """
    facts = graph.metadata
    layers = facts.n_layers
    folded = fold(graph)
    x, ticks = _columns(folded.nodes, facts)
    y = [_level(row, layers) for row in folded.nodes.to_dict("records")]
    figure = go.Figure()
    between = folded.edges[folded.edges["source"] != folded.edges["target"]]
    drawn = between.nlargest(MAX_EDGES, "influence")
    _add_edges(figure, drawn, x, y)
    _add_carriers(figure, graph, folded, drawn, x, y)
    _add_nodes(figure, graph, folded, x, y)
    if picture is not None and patches is not None:
        _add_pictures(figure, facts, picture, patches)
    height = _TOP + _BOTTOM + _LAYER * (layers + 2)
    figure.update_layout(
        title={"text": _title(graph, len(drawn), len(between))},
        width=1060,
        height=max(height, 560),
        hovermode="closest",
        legend={"orientation": "h", "y": -62 / (height - _TOP - _BOTTOM), "yanchor": "top", "x": 0},
        xaxis={
            "domain": [0, 1 if picture is None else _SPLIT],
            "tickvals": list(ticks.values()),
            "ticktext": list(ticks),
            "tickfont": {"size": 10},
            "tickangle": -90 if len(ticks) > 14 else 0,
            "title": {"text": "token row: CLS, then patches (row, column)", "standoff": 6},
            "range": [-1, max(x) + 1],
            "zeroline": False,
        },
        yaxis={
            "tickvals": list(range(layers + 2)),
            "ticktext": ["inputs", *(f"layer {l}" for l in range(layers)), "logit"],
            "range": [-0.6, layers + 1.6],
            "zeroline": False,
        },
    )
    return finish(figure).update_layout(margin={"l": 70, "t": _TOP, "b": _BOTTOM, "r": 80})


def _title(graph: AttributionGraph, drawn: int, edges: int) -> str:
    facts = graph.metadata
    grouped = sum(map(len, graph.groups.values()))
    folded = f"; {len(graph.groups)} groups stand for {grouped} nodes" if grouped else ""
    return (
        f"What drives {facts.target}: logit {facts.logit:.2f}"
        f"<br><sup>{facts.image}<br>model {facts.model.rsplit('/', 1)[-1]}, CLT "
        f"{facts.clt.rsplit('/', 1)[-1]}, L0 {facts.l0:.1f}; teacher trajectory; attention and "
        f"active sets held, norms {facts.norms}"
        f"<br>{len(graph.nodes) - 2} of {facts.n_candidates - 1} nodes, with "
        f"{100 * facts.kept_influence:.0f} % of all influence and "
        f"{100 * facts.kept_effect:.0f} % of |direct effects| on the logit (biases included); "
        f"{drawn} of {edges} edges drawn{folded}"
        "<br>blue raises, orange lowers: a node the logit (direct effect), an edge its target; "
        "size and width: influence</sup>"
    )


def _columns(nodes: pd.DataFrame, facts: GraphMetadata) -> tuple[list[float], dict[str, float]]:
    """A place for every node, side by side where several share layer and token row; and ticks."""
    level = [_level(row, facts.n_layers) for row in nodes.to_dict("records")]
    cells = pd.DataFrame({"token": nodes["token"].astype(float), "level": level})
    # biases stand at the left, and the logit is read from the class token
    cells.loc[cells["token"].isna() | (nodes["kind"] == "bias"), "token"] = -1
    cells.loc[nodes["kind"] == "logit", "token"] = 0
    places = cells.groupby(["token", "level"])["token"]
    place, size = places.cumcount(), places.transform("size")
    widths = size.groupby(cells["token"]).max().sort_index()
    centres = widths.cumsum() - widths / 2
    x = cells["token"].map(centres) + place - (size - 1) / 2
    ticks = {
        "bias" if token < 0 else patch_name(int(token), facts.patch_grid): float(centre)
        for token, centre in centres.items()
    }
    return x.tolist(), ticks


def _level(row: dict[str, Any], layers: int) -> int:
    if row["kind"] == "logit":
        return layers + 1
    return 0 if pd.isna(row["layer"]) else int(row["layer"]) + 1


def _add_edges(figure: go.Figure, edges: pd.DataFrame, x: list[float], y: list[int]) -> None:
    strongest = edges["influence"].max() if len(edges) else 1.0
    grade = np.minimum((3 * (edges["influence"] / strongest) ** 0.5).astype(int), 2)
    for sign, colour, name in ((1, BLUE, "raises"), (-1, ORANGE, "lowers")):
        for g, width in enumerate(_WIDTHS):
            part = edges[(np.sign(edges["effect"]) == sign) & (grade == g)]
            ends = list(zip(part["source"], part["target"], strict=True))
            figure.add_scatter(
                x=[v for s, t in ends for v in (x[s], x[t], None)],
                y=[v for s, t in ends for v in (y[s], y[t], None)],
                mode="lines",
                line={"color": colour, "width": width},
                opacity=0.25 + 0.2 * g,
                name=f"edge: {name}",
                legendgroup=name,
                showlegend=g == 1,
                hoverinfo="skip",
            )


def _add_carriers(
    figure: go.Figure,
    graph: AttributionGraph,
    folded: FoldedGraph,
    edges: pd.DataFrame,
    x: list[float],
    y: list[int],
) -> None:
    """What hovering over the middle of an edge says: its effect, and what carries it."""
    heads, alone, texts = graph.top_heads(), graph.residual_parts(), []
    for r in edges.itertuples():
        carrier = "through the residual stream alone"
        if r.pairs > 1:
            carrier = f"{r.pairs} edges of members"
        elif found := heads.get((r.from_node, r.to_node)):
            layer, head, effect = found
            residual = alone.get((r.from_node, r.to_node), 0.0)
            carrier = (
                f"residual stream {residual:+.4g}; of heads most by {layer}.{head} {effect:+.4g}"
            )
        ends = (
            label(folded.nodes.iloc[end].to_dict(), graph.names) for end in (r.source, r.target)
        )
        texts.append(f"{' → '.join(ends)}<br>effect {r.effect:+.4g}<br>{carrier}")
    figure.add_scatter(
        x=[(x[r.source] + x[r.target]) / 2 for r in edges.itertuples()],
        y=[(y[r.source] + y[r.target]) / 2 for r in edges.itertuples()],
        mode="markers",
        marker={"size": 9, "opacity": 0},
        hovertext=texts,
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )


def _add_nodes(
    figure: go.Figure,
    graph: AttributionGraph,
    folded: FoldedGraph,
    x: list[float],
    y: list[int],
) -> None:
    nodes = folded.nodes
    largest = nodes["influence"][1:].max()
    for kind, symbol in _SYMBOLS.items():
        part = nodes[nodes["kind"] == kind]
        figure.add_scatter(
            x=[x[i] for i in part["node"]],
            y=[y[i] for i in part["node"]],
            mode="markers",
            marker={
                "symbol": symbol,
                "size": [7 + 15 * sqrt(min(1.0, v / largest)) for v in part["influence"]],
                "color": [_colour(row) for row in part.to_dict("records")],
                "line": {"color": "white", "width": 1},
            },
            text=[hover(row, graph) for row in part.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
            name=_NAMES[kind],
            showlegend=False,
        )
        # in the legend without a sign
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": symbol, "size": 11, "color": GREY},
            name=_NAMES[kind],
            showlegend=len(part) > 0,
        )
    groups = nodes[nodes["kind"] == "group"]
    figure.add_scatter(
        x=[x[i] for i in groups["node"]],
        y=[y[i] for i in groups["node"]],
        mode="text",
        text=[label(row, graph.names) for row in groups.to_dict("records")],
        textposition="top center",
        textfont={"size": 10},
        hoverinfo="skip",
        showlegend=False,
    )


def _colour(row: dict[str, Any]) -> str:
    if row["kind"] == "logit":
        return INK
    return ORANGE if row["effect"] < 0 else BLUE


def _add_pictures(
    figure: go.Figure,
    facts: GraphMetadata,
    picture: UInt8[np.ndarray, "height width 3"],
    patches: Float[Tensor, " patch"],
) -> None:
    down, across = facts.patch_grid
    grid = patches.detach().double().cpu().numpy().reshape(down, across)
    largest = float(np.abs(grid).max()) or 1.0
    left = _SPLIT + 0.04
    for axis, low, high in (("2", 0.55, 0.95), ("3", 0.02, 0.42)):
        figure.update_layout(
            {
                f"xaxis{axis}": {
                    "domain": [left, 1],
                    "anchor": f"y{axis}",
                    "visible": False,
                    "range": [-0.5, across - 0.5],
                    "constrain": "domain",
                },
                f"yaxis{axis}": {
                    "domain": [low, high],
                    "anchor": f"x{axis}",
                    "visible": False,
                    "range": [down - 0.5, -0.5],
                    "scaleanchor": f"x{axis}",
                    "constrain": "domain",
                    "constraintoward": "top",
                },
            }
        )
        lay_picture(figure, picture, str(axis), (down, across))
    # without a trace, axes are not drawn
    figure.add_scatter(
        x=[None], y=[None], xaxis="x2", yaxis="y2", showlegend=False, hoverinfo="skip"
    )
    figure.add_heatmap(
        z=grid.tolist(),
        xaxis="x3",
        yaxis="y3",
        zmin=-largest,
        zmax=largest,
        colorscale=[[0, ORANGE], [0.5, "#ffffff"], [1, BLUE]],
        opacity=0.7,
        colorbar={"thickness": 10, "len": 0.4, "y": 0.22, "x": 1.01, "tickfont": {"size": 10}},
        hovertemplate="patch (%{y}, %{x}): %{z:.4g}<extra></extra>",
    )
    for y, text in ((0.955, "the image"), (0.425, "direct effects of patches (logits)")):
        figure.add_annotation(
            text=text,
            xref="paper",
            yref="paper",
            x=left,
            y=y,
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
        )
