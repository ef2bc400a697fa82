"""Accuracy and loss with source layers kept or dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, add_levels, add_points
from vit_clt.analysis.reporting.style import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    ROW_NAMES,
    SKY,
    accuracy_axis,
    finish,
)

if TYPE_CHECKING:
    from vit_clt.analysis.ablations.curves import AblationCurves

_STYLES = {
    "projection": (BLUE, "solid", "circle", "by projection"),
    "centred": (ORANGE, "solid", "square", "by centred"),
    "norm": (GREEN, "solid", "diamond", "by norm"),
    "loo": (AMBER, "solid", "triangle-up", "by loo"),
    "loo_r2": (AMBER, "dash", "triangle-down", "by loo R²"),
    "effect": (BLUE, "dash", "hexagon", "by effect"),
    "last": (SKY, "solid", "x", "deepest first"),
    "bottom": (SKY, "dash", "triangle-left", "lowest score first"),
    "random": (GREY, "solid", "circle-open", "random (mean; band: lowest to highest draw)"),
    "given": (INK, "solid", "star", "given set"),
}
_REFERENCES = ("original", "full", "floor_mean", "floor_zero")
_PANELS = (("top1", "accuracy (%)", 100), ("loss", "cross-entropy (nats)", 1))


def ablation_figure(curves: AblationCurves) -> go.Figure:
    """Accuracy and loss with the first k sources kept (above) or dropped (below), per ranking."""
    frame = curves.to_frame()
    modes = ("keep", "drop")
    figure = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=[f"{mode} k · {title}" for mode in modes for _, title, _ in _PANELS],
        horizontal_spacing=0.1,
        vertical_spacing=0.13,
        shared_yaxes=False,
    )
    for column, (measure, _, factor) in enumerate(_PANELS, start=1):
        for row, mode in enumerate(modes, start=1):
            place: dict[str, Any] = {"row": row, "col": column}
            legend = row == column == 1
            levels = {
                name: getattr(curves.readings[name], measure) * factor for name in _REFERENCES
            }
            add_levels(
                figure,
                [0, len(curves.ranking)],
                {LEVELS[name]: level for name, level in levels.items()},
                legend=legend,
                **place,
            )
            names = list(dict.fromkeys(frame["ranking"]))
            for i, ranking in enumerate(names):
                colour, dash, symbol, label = _STYLES[ranking]
                rows = frame[(frame["ranking"] == ranking) & (frame["mode"] == mode)]
                drawn = rows.groupby("k", sort=True)
                several = len(rows) > drawn.ngroups
                y = drawn[measure].mean() * factor
                # a little apart, so that the bars of several rankings can be told apart
                x = (y.index + 0.08 * (i - (len(names) - 1) / 2)).tolist()
                if several:
                    low, high = drawn[measure].min() * factor, drawn[measure].max() * factor
                    figure.add_trace(_band(x, low.tolist(), high.tolist(), ranking), **place)
                else:
                    low, high = (
                        levels["full"] + drawn[f"{measure}_above_full_{end}"].first() * factor
                        for end in ("low", "high")
                    )
                values = (y,) if several else (y, low, high)
                add_points(
                    figure,
                    x,
                    values,
                    name=label,
                    colour=colour,
                    dash=dash,
                    symbol=symbol,
                    hover=f"{mode} {label}" + " {%{customdata}}: %{y:.4f}",
                    legend=legend,
                    legendgroup=ranking,
                    customdata=["" if several else each for each in drawn["sources"].first()],
                    **place,
                )
    for row in (1, 2):
        accuracy_axis(figure, row=row, col=1)
    several_targets = len(curves.targets) > 1
    layers = ", ".join(map(str, curves.targets))
    where = f"of layers {layers}, each its own" if several_targets else f"of layer {layers}"
    no_op = " — these rows cannot reach the output: a no-op" if curves.no_op else ""
    order = "" if several_targets else f": {' '.join(map(str, curves.ranking))}"
    first = _STYLES[curves.orders[0].ranking][3]
    figure.update_xaxes(dtick=1, range=[-0.6, len(curves.ranking) + 0.6])
    figure.update_xaxes(title_text="k source layers", title_standoff=5, row=2)
    figure.update_layout(
        title={
            "text": f"Keep or drop k sources {where}, "
            f"{ROW_NAMES[curves.tokens]}{no_op}<br><sup>{curves.data}, N = {curves.readings.n}, "
            f"teacher trajectory, L0 = {curves.l0:.1f}, dropped terms: {curves.fill}, seed "
            f"{curves.seed}<br>scores: {curves.ranked_by}; {first}{order}<br>bars: paired 95 % "
            "bootstrap over images of the difference to the full reconstruction</sup>",
        },
        width=1000,
        height=850,
        legend={"orientation": "h", "y": -0.1},
    )
    return finish(figure).update_layout(margin={"t": 140})


def _band(x: list[float], low: list[float], high: list[float], group: str) -> go.Scatter:
    return go.Scatter(
        x=[*x, *x[::-1]],
        y=[*low, *high[::-1]],
        fill="toself",
        fillcolor=GREY,
        opacity=0.25,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=group,
        showlegend=False,
    )
