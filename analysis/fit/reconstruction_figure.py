"""Reconstruction per layer, several CLTs overlaid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, add_levels, add_points
from vit_clt.analysis.reporting.style import ROW_NAMES, SERIES, finish, log_axis
from vit_clt.choices import TokenKind

if TYPE_CHECKING:
    from vit_clt.analysis.fit.reconstruction_study import Reconstruction

_FIT = (
    ("cosine", "cosine"),
    ("mse", "MSE (log, squared units of y)"),
    ("r2", "R²"),
)
_DEPTH = (
    ("l0", "active features a row (L0)"),
    ("dead", "dead features (%)"),
    ("cross_layer", "cross-layer share of ŷ (%)"),
)
_PERCENT = ("dead", "cross_layer")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")


def reconstruction_figure(result: Reconstruction) -> go.Figure:
    """Cosine, MSE and R^2 per token kind; L0, dead and cross-layer share; all per layer."""
    kinds = [kind for kind in get_args(TokenKind) if kind in set(result.frame["tokens"])]
    titles = [f"{ROW_NAMES[kind]} · {title}" for kind in kinds for _, title in _FIT]
    titles += [f"{ROW_NAMES['all']} · {title}" for _, title in _DEPTH]
    figure = make_subplots(
        rows=len(kinds) + 1,
        cols=3,
        subplot_titles=titles,
        horizontal_spacing=0.08,
        vertical_spacing=0.075,
    )
    for i, kind in enumerate(kinds, start=1):
        for column, (name, _) in enumerate(_FIT, start=1):
            _panel(figure, result, kind, name, i, column)
    for column, (name, _) in enumerate(_DEPTH, start=1):
        _panel(figure, result, "all", name, len(kinds) + 1, column)
    figure.update_xaxes(dtick=1 if len(result.frame) <= 3 * 13 else 3)
    figure.update_xaxes(title_text="layer", title_standoff=5, row=len(kinds) + 1)
    height = 275 * (len(kinds) + 1)
    figure.update_layout(
        title={
            "text": f"Reconstruction per layer<br><sup>{result.data}, N = {result.n}, "
            f"{result.trajectory} trajectory; R² = 0 is predicting the mean; bars: 95 % "
            f"bootstrap over images, seed {result.seed}<br>typical rows: without the 1 % with "
            "the largest ‖y‖; cross-layer: 1 − centred C(l→l), the share that features of "
            "earlier layers decode"
            "</sup>"
        },
        width=1100,
        height=height,
        legend={"orientation": "h", "y": -60 / (height - 180), "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 120})


def _panel(
    figure: go.Figure,
    result: Reconstruction,
    kind: TokenKind,
    column: str,
    row: int,
    col: int,
) -> None:
    factor = 100 if column in _PERCENT else 1
    legend = row == col == 1
    drawn: list[float] = []
    place: dict[str, Any] = {"row": row, "col": col}
    first = result.frame[result.frame["tokens"] == kind]
    layers = first["layer"].tolist()
    if f"{column}_floor" in first:
        floor = first[f"{column}_floor"].tolist()
        drawn += floor
        floors = {LEVELS["mean_predictor"]: floor}
        add_levels(figure, layers, floors, legend=legend, hover=", layer %{x}", **place)
    for i, (name, each) in enumerate(result.by_clt().items()):
        rows = each.frame[each.frame["tokens"] == kind]
        colour, symbol = SERIES[i % len(SERIES)], _SYMBOLS[i % len(_SYMBOLS)]
        ends = [end for end in ("", "_low", "_high") if column + end in rows]
        values = tuple(rows[column + end] * factor for end in ends)
        drawn += values[0].tolist()
        l0, dead = each.mean("all", "l0"), each.mean("all", "dead")
        add_points(
            figure,
            layers,
            values,
            name=f"{name}: L0 {l0:.1f} a row, {dead:.0%} dead",
            colour=colour,
            symbol=symbol,
            hover=f"{name}, layer %{{x}}: %{{y:.4g}}",
            legend=legend,
            legendgroup=str(i),
            **place,
        )
        if f"{column}_typical" in rows:
            figure.add_trace(
                go.Scatter(
                    x=layers,
                    y=rows[f"{column}_typical"].tolist(),
                    mode="lines",
                    name="dashed: R² of the typical rows",
                    legendgroup="typical",
                    showlegend=i == 0 and row == 1,
                    line={"color": colour, "dash": "dash", "width": 1},
                    hovertemplate=f"{name}, typical rows, layer %{{x}}: %{{y:.4g}}<extra></extra>",
                ),
                **place,
            )
    if column == "mse":
        log_axis(figure, drawn, **place)
    elif column in dict(_DEPTH):
        figure.update_yaxes(rangemode="tozero", **place)
