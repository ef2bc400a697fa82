"""How often what a layer retrieves has the query's class, layer by layer."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, add_levels, add_points
from vit_clt.analysis.reporting.style import BLUE, GREEN, ORANGE, ROW_NAMES, finish, span
from vit_clt.analysis.retrieval.consistency import ClassConsistency

_LINES = (
    ("codes", "codes z_s", BLUE, "solid", "circle"),
    ("inputs", "baseline: plain x_s", ORANGE, "dash", "square"),
    ("untrained", "codes of an untrained CLT", GREEN, "dashdot", "diamond"),
)


def consistency_figure(result: ClassConsistency) -> go.Figure:
    """Share of the k nearest images with the query's class against the layer; a panel a kind."""
    frame = result.to_frame()
    kinds = frame["tokens"].unique().tolist()
    figure = make_subplots(
        rows=1,
        cols=len(kinds),
        shared_yaxes=True,
        subplot_titles=[ROW_NAMES[kind] for kind in kinds],
        horizontal_spacing=0.06,
    )
    for column, kind in enumerate(kinds, start=1):
        rows = frame[frame["tokens"] == kind]
        layers = rows["layer"].tolist()
        for name, label, colour, dash, symbol in _LINES:
            if name not in rows:
                continue
            add_points(
                figure,
                layers,
                tuple(100 * rows[name + end] for end in ("", "_low", "_high")),
                name=label,
                colour=colour,
                dash=dash,
                symbol=symbol,
                hover=label + ", layer %{x}: %{y:.1f} %",
                legend=column == 1,
                row=1,
                col=column,
            )
        chance = {LEVELS["chance"]: 100 * rows["chance"]}
        add_levels(figure, layers, chance, legend=column == 1, row=1, col=column)
    figure.update_xaxes(dtick=1, title_text="layer s")
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=f"of the {result.k} nearest, same class (%)", col=1)
    figure.update_layout(
        title={
            "text": "Do retrieved images have the query's class?<br><sup>"
            f"{result.similarity} similarity; {result.n} queries of {result.data}, corpus: "
            f"{result.corpus}, N = {result.n_corpus}<br>teacher trajectory, L0 {span(frame['l0'])} "
            "a token row; bars: 95 % bootstrap over queries</sup>",
        },
        width=140 + 440 * len(kinds),
        height=460,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
    )
    return finish(figure)
