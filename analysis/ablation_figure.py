"""Accuracy and loss with source layers kept or dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, ROW_NAMES, finish

if TYPE_CHECKING:
    from vit_clt.analysis.ablations import AblationCurves


def ablation_figure(curves: AblationCurves) -> go.Figure:
    """Accuracy and loss with the top k sources kept or dropped, beside baseline and floors."""
    frame = curves.to_frame()
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("zero-shot accuracy (%)", "cross-entropy (nats)"),
        horizontal_spacing=0.12,
    )
    for column, (value, low, high, factor) in enumerate(
        (("top1", "top1_low", "top1_high", 100), ("loss", "loss_low", "loss_high", 1)), start=1
    ):
        for mode, colour, dash, symbol in (
            ("keep", BLUE, "solid", "circle"),
            ("drop", ORANGE, "dash", "square"),
        ):
            rows = frame[frame["mode"] == mode]
            figure.add_trace(
                go.Scatter(
                    x=rows["k"].tolist(),
                    y=(rows[value] * factor).tolist(),
                    error_y={
                        "array": ((rows[high] - rows[value]) * factor).tolist(),
                        "arrayminus": ((rows[value] - rows[low]) * factor).tolist(),
                        "thickness": 1,
                    },
                    customdata=rows["sources"].tolist(),
                    hovertemplate=mode + " {%{customdata}}: %{y:.3f}<extra></extra>",
                    name=f"{mode} top k",
                    legendgroup=mode,
                    showlegend=column == 1,
                    mode="lines+markers",
                    line={"color": colour, "dash": dash},
                    marker={"symbol": symbol, "size": 8},
                ),
                row=1,
                col=column,
            )
        for name, label, colour, dash in (
            ("original", "unaltered model", "#222222", "solid"),
            ("full", "full reconstruction", GREEN, "dot"),
            ("floor_mean", "floor: MLP rows at their mean", PURPLE, "dashdot"),
            ("floor_zero", "floor: MLP rows at zero", GREY, "longdash"),
        ):
            reading = curves.readings[name]
            level = (reading.top1 if value == "top1" else reading.loss) * factor
            figure.add_trace(
                go.Scatter(
                    x=[0, len(curves.ranking)],
                    y=[level, level],
                    mode="lines",
                    name=label,
                    legendgroup=name,
                    showlegend=column == 1,
                    line={"color": colour, "dash": dash, "width": 1.5},
                    hovertemplate=label + ": %{y:.3f}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    no_op = " — these rows cannot reach the output: a no-op" if curves.no_op else ""
    figure.update_xaxes(title_text="k source layers", dtick=1)
    figure.update_layout(
        title={
            "text": f"Keep or drop the top k sources of layer {curves.target}, "
            f"{ROW_NAMES[curves.tokens]}{no_op}<br><sup>{curves.data}, N = {curves.readings.n}, "
            f"teacher trajectory, L0 = {curves.l0:.1f}, dropped terms: {curves.fill}, seed "
            f"{curves.seed}; bars: 95 % bootstrap over images<br>ranked by {curves.ranked_by}: "
            f"{' '.join(map(str, curves.ranking))}</sup>",
        },
        width=1000,
        height=490,
        legend={"orientation": "h", "y": -0.2},
    )
    return finish(figure)
