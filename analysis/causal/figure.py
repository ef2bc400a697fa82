"""Causal effects as a figure: targets as heatmaps, the output by layer and range."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.causal.targets import PATHS
from vit_clt.analysis.reporting.levels import LEVELS, add_levels, add_points
from vit_clt.analysis.reporting.style import (
    BLUE,
    GREEN,
    ORANGE,
    ROW_NAMES,
    accuracy_axis,
    error_bars,
    finish,
    or_none,
)
from vit_clt.analysis.stats.names import layers_text

if TYPE_CHECKING:
    from vit_clt.analysis.causal.effects import CausalEffects

SITE_NAMES = {"mlp": "MLP outputs", "attn": "attention outputs"}
FILL_NAMES = {
    "mean": "their mean over the images",
    "resample": "another image's",
    "zero": "zero",
}
_COLOURS = {"total": BLUE, "direct": ORANGE}


def causal_figure(effects: CausalEffects) -> go.Figure:
    """Heatmaps of total and direct effects on y_l; below, accuracy and loss by layer and range."""
    read = effects.readings is not None
    n = effects.n_layers
    measures = ("Δ accuracy (points)", "Δ cross-entropy (nats)")
    titles = ["total effect on y_l", "direct effect on y_l"]
    if read:
        titles += [f"one layer · {m}" for m in measures] + [f"ranges · {m}" for m in measures]
    n_rows = 3 if read else 1
    heat = max(330, 30 * n + 60)
    figure = make_subplots(
        rows=n_rows,
        cols=2,
        subplot_titles=titles,
        horizontal_spacing=0.12,
        vertical_spacing=0.1,
        row_heights=[heat, 260, 260][:n_rows],
    )
    for column, path in enumerate(PATHS, start=1):
        matrix = effects.matrix(path).tolist()
        figure.add_trace(
            go.Heatmap(
                z=[[or_none(v) for v in row] for row in matrix],
                x=list(map(str, range(n))),
                y=list(map(str, range(n))),
                text=[["" if isnan(v) else _short(v) for v in row] for row in matrix],
                texttemplate="%{text}" if n <= 12 else None,
                textfont={"size": 11 if n <= 8 else 9},
                coloraxis=f"coloraxis{column if column > 1 else ''}",
                hovertemplate=f"{path}, source %{{x}} on target %{{y}}: %{{z:.4g}}<extra></extra>",
                hoverongaps=False,
                xgap=1,
                ygap=1,
            ),
            row=1,
            col=column,
        )
    figure.update_xaxes(
        title_text="ablated layer s", type="category", showgrid=False, title_standoff=5, row=1
    )
    figure.update_yaxes(
        title_text="target layer l", autorange="reversed", type="category", showgrid=False, row=1
    )
    if read:
        frame = effects.to_frame()
        output = frame[frame["target"] == "output"].set_index(["measure", "path", "layers"])
        for column, (measure, factor) in enumerate(
            (("delta_top1", 100), ("delta_loss", 1)), start=1
        ):
            _bars(figure, output.loc[measure], factor, n, column)
            _ranges(figure, output.loc[measure], factor, n, column)
        for row in (2, 3):
            accuracy_axis(figure, row=row, col=1)
    height = 200 + heat + (600 if read else 0)
    # a colour bar beside each heatmap: direct effects are far smaller than total ones
    top = 1 - 0.1 / 2 if read else 1.0
    length = heat / (heat + 520 + 0.1 * height) if read else 1.0
    shared = {"colorscale": "Blues", "cmin": 0}
    bars = {"thickness": 12, "len": length * 0.95, "yanchor": "top", "y": max(top, 1.0)}
    figure.update_layout(
        title={"text": f"{causal_title(effects)}<br><sup>{_subtitle(effects)}</sup>"},
        coloraxis={**shared, "colorbar": {**bars, "x": 0.445}},
        coloraxis2={**shared, "colorbar": {**bars, "x": 1.005}},
        barmode="group",
        width=1000,
        height=height,
        legend={"orientation": "h", "y": -0.06},
    )
    return finish(figure).update_layout(margin={"t": 145})


def _bars(figure: go.Figure, output: pd.DataFrame, factor: int, n: int, column: int) -> None:
    for path in PATHS:
        rows = output.loc[path].loc[[str(s) for s in range(n)]]
        values, low, high = (rows[end] * factor for end in ("value", "low", "high"))
        figure.add_trace(
            go.Bar(
                x=list(range(n)),
                y=values.tolist(),
                error_y=error_bars(values, low, high, width=2),
                name=f"{path} effect of one layer",
                legendgroup=path,
                showlegend=column == 1,
                marker={"color": _COLOURS[path], "pattern": {"shape": "/" * (path == "direct")}},
                hovertemplate=f"{path}, layer %{{x}}: %{{y:.4g}}<extra></extra>",
            ),
            row=2,
            col=column,
        )
    figure.update_xaxes(title_text="ablated layer s", dtick=1, title_standoff=5, row=2, col=column)


def _ranges(figure: go.Figure, output: pd.DataFrame, factor: int, n: int, column: int) -> None:
    total = output.loc["total"]
    for label, ranges, colour, dash, symbol in (
        ("layers s to the last", [range(s, n) for s in range(n)], BLUE, "solid", "circle"),
        ("layers 0 to s", [range(s + 1) for s in range(n)], GREEN, "dash", "square"),
    ):
        names = [layers_text(each) for each in ranges]
        at = [s for s, name in enumerate(names) if name in total.index]
        rows = total.loc[[names[s] for s in at]]
        add_points(
            figure,
            at,
            tuple(rows[end] * factor for end in ("value", "low", "high")),
            name=f"total effect of {label}",
            colour=colour,
            dash=dash,
            symbol=symbol,
            hover="layers %{customdata}: %{y:.4g}",
            legend=column == 1,
            customdata=rows.index.tolist(),
            row=3,
            col=column,
        )
    floor = {LEVELS["every_layer"]: float(np.asarray(total["floor"])[0]) * factor}
    add_levels(figure, [0, n - 1], floor, legend=column == 1, row=3, col=column)
    figure.update_xaxes(title_text="s", dtick=1, title_standoff=5, row=3, col=column)


def causal_title(effects: CausalEffects) -> str:
    """What was ablated, and what it was read on."""
    return (
        f"Causal effects of {SITE_NAMES[effects.site]} on {ROW_NAMES[effects.tokens]}, "
        f"{ROW_NAMES[effects.ablated]} ablated"
    )


def _subtitle(effects: CausalEffects) -> str:
    lines = (
        f"{effects.data}, N = {effects.n}, no CLT; ablated rows set to {FILL_NAMES[effects.fill]}, "
        f"seed {effects.seed}<br>effects on y_l: E‖y_l − y_l′‖² / E‖y_l − mean‖², 1 = as far as "
        "y_l varies over images (colour scales differ)"
    )
    if effects.readings is not None:
        original = effects.readings["original"]
        lines += (
            f"<br>unaltered: top-1 {100 * original.top1:.2f} %, loss {original.loss:.4f} nats, "
            f"readout: {effects.readout}; bars: 95 % bootstrap over images, paired"
        )
    return lines


def _short(value: float) -> str:
    # a cell of twelve is narrow; hovering shows every digit
    if value == 0 or value >= 0.01:
        return f"{value:.2f}" if value else "0"
    return f"{value:.3f}"[1:] if value >= 0.0005 else "<.001"
