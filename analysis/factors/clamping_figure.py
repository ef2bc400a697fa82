"""Clamped features as a figure: how often the answer follows, and between which values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, add_levels
from vit_clt.analysis.reporting.style import BLUE, INK, ORANGE, error_bars, finish
from vit_clt.analysis.stats.names import layers_text
from vit_clt.hooks.rows import REGION_NAMES

if TYPE_CHECKING:
    from vit_clt.analysis.factors.clamping import Clamp

_NAMES = {"original": "unaltered", "own": "own value's mean", "group": "clamped"}


def clamp_figure(result: Clamp) -> go.Figure:
    """Shares that moved to the clamped value's answer and that stayed, per version; losses of both
    answers; how often each pair of values moved."""
    frame = result.to_frame()
    names = [_NAMES.get(name, name) for name in frame["features"]]
    figure = make_subplots(
        rows=1,
        cols=3,
        subplot_titles=(
            "answers (%)",
            "loss of that answer (nats)",
            f"moved (%), by {result.factor}",
        ),
        horizontal_spacing=0.09,
        column_widths=[0.34, 0.3, 0.36],
    )
    bars = (
        ("moved", "that of the clamped value", BLUE, ""),
        ("stayed", "the image's own", ORANGE, "/"),
    )
    for what, label, colour, pattern in bars:
        for column, (name, factor) in enumerate(((what, 100), (f"{what}_loss", 1)), start=1):
            y, low, high = (frame[name + end] * factor for end in ("", "_low", "_high"))
            figure.add_trace(
                go.Bar(
                    x=names,
                    y=y.tolist(),
                    error_y=error_bars(y, low, high, width=2),
                    name=label,
                    legendgroup=what,
                    showlegend=column == 1,
                    marker={"color": colour, "pattern": {"shape": pattern}},
                    hovertemplate=f"%{{x}}, {label}: %{{y:.4g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    chance = {LEVELS["chance"]: 100 * result.chance}
    add_levels(figure, names, chance, legend=True, row=1, col=1)
    values = np.unique([result.origin, result.target]).tolist()
    moved = [
        [
            100 * result.moved["group"][at].mean() if (at := _pair(result, b, a)).any() else None
            for a in values
        ]
        for b in values
    ]
    figure.add_trace(
        go.Heatmap(
            z=moved,
            x=list(map(str, values)),
            y=list(map(str, values)),
            colorscale="Blues",
            zmin=0,
            zmax=100,
            xgap=1,
            ygap=1,
            colorbar={"thickness": 10, "len": 0.9},
            hovertemplate="from %{y} to %{x}: %{z:.4g} %<extra></extra>",
            hoverongaps=False,
        ),
        row=1,
        col=3,
    )
    figure.update_xaxes(tickangle=-40, col=1)
    figure.update_xaxes(tickangle=-40, col=2)
    figure.update_xaxes(type="category", title_text="clamped to", showgrid=False, col=3)
    figure.update_yaxes(
        type="category", title_text="in the image", title_standoff=4, autorange="reversed", col=3
    )
    figure.update_yaxes(showgrid=False, col=3)
    figure.update_layout(
        title={
            "text": f"Does the answer follow {result.factor}?<br><sup>{result.data}, "
            f"N = {result.n}, one other value each, {result.n_pairs} pairs of values; "
            f"{result.n_features} features on {REGION_NAMES[result.region]}, layers "
            f"{layers_text(result.layers)},<br>set to their means over {result.mean_data}; CLT "
            f"with error nodes, stream inputs, readout: {result.readout}, seed "
            f"{result.seed}<br>"
            f"random: matched in rate, {100 * result.overlap:.0f} % of the group in them; dotted: "
            f"chance {100 * result.chance:.0f} %; bars: 95 %, Wilson (answers) and bootstrap (loss)"
            "</sup>"
        },
        font={"color": INK},
        barmode="group",
        width=1000,
        height=560,
        legend={"orientation": "h", "y": -0.33, "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 150, "b": 130})


def _pair(result: Clamp, b: int, a: int) -> np.ndarray:
    return (result.origin == b) & (result.target == a)
