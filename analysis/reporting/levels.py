"""Reference levels and measured series, which all figures draw alike.

Black is the model (unaltered, or with everything the CLT has), purple and grey are floors and
controls; each has a dash of its own, so that they can be told apart in print without colours.
Measured series have the colours in `SERIES`, markers and 95 % bars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from vit_clt.analysis.reporting.style import GREY, INK, PURPLE, error_bars, or_none


@dataclass(frozen=True)
class Level:
    """How one kind of reference is called and drawn."""

    label: str
    colour: str
    dash: str
    symbol: str = "circle-open"
    """Its marker in figures that have no axis along which a line could run."""

    def named(self, label: str) -> Level:
        """The same kind under a more particular name."""
        return replace(self, label=label)

    def marker(self, size: int) -> dict[str, Any]:
        """`marker` of a trace that draws it as a point, `size` pixels wide."""
        line = {"width": 2, "color": self.colour}
        return {"symbol": self.symbol, "size": size, "color": self.colour, "line": line}


LEVELS = {
    "original": Level("unaltered model", INK, "solid", "square-open"),
    "published": Level("unaltered, paper", INK, "dash"),
    "full": Level("full reconstruction", INK, "dash", "circle-open"),
    "target": Level("target", INK, "dot"),
    "additive": Level("additive floor", INK, "dash"),
    "bias_only": Level("bias alone", PURPLE, "longdash", "triangle-up-open"),
    "floor_mean": Level("floor: MLP rows at their mean", PURPLE, "dashdot", "diamond-open"),
    "mean_predictor": Level("floor: predicting the mean", PURPLE, "dashdot"),
    "every_layer": Level("floor: every layer ablated", PURPLE, "dashdot"),
    "floor_zero": Level("floor: MLP rows at zero", GREY, "dot", "x-open"),
    "chance": Level("chance", GREY, "dot"),
    "random": Level("random features", GREY, "dash"),
    "identity": Level("both the same", GREY, "dash"),
}
"""Kinds of reference, called as the versions of the model are in results."""


def add_levels(
    figure: go.Figure,
    along: Sequence[float | int | str],
    levels: Mapping[Level, float | int | Sequence[float | int] | pd.Series],
    *,
    row: int,
    col: int,
    legend: bool = False,
    vertical: bool = False,
    hover: str = "",
) -> None:
    """Draw reference lines into one panel.

    A level that is NaN throughout is left out.

    Args:
        figure: made by plotly's `make_subplots`.
        along: where on the axis the line runs: its two ends or every place of a measurement.
        levels: the height of each line, or one height for each place in `along`.
        row, col: the panel, counted from 1.
        legend: whether the legend names this panel's lines; one panel of a figure does.
        vertical: heights are on the x axis and `along` on the y axis.
        hover: what the hover text says after the label, such as ", layer %{x}".
    """
    for level, height in levels.items():
        heights = np.broadcast_to(np.asarray(height, dtype=float), len(along)).tolist()
        if np.isnan(heights).all():
            continue
        x, y = (heights, list(along)) if vertical else (list(along), heights)
        value = "x" if vertical else "y"
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                # a line of one point shows nothing
                mode="lines+markers" if len(along) == 1 else "lines",
                name=level.label,
                legendgroup=level.label,
                showlegend=legend,
                line={"color": level.colour, "dash": level.dash, "width": 1.5},
                hovertemplate=f"{level.label}{hover}: %{{{value}:.5g}}<extra></extra>",
            ),
            row=row,
            col=col,
        )


def add_points(
    figure: go.Figure,
    x: Sequence[float | int],
    values: tuple[pd.Series, ...],
    *,
    name: str,
    colour: str,
    hover: str,
    row: int,
    col: int,
    dash: str = "solid",
    symbol: str = "circle",
    legend: bool = False,
    **trace: Any,
) -> None:
    """Draw one measured series into one panel: markers joined by a line, with error bars.

    Args:
        figure: made by plotly's `make_subplots`.
        x: a place for each value.
        values: what was measured; with the ends of its intervals (value, low, high), as bars. NaN
            is a gap.
        name: in the legend, and the group of traces that a click there hides.
        colour, dash, symbol: of line and markers.
        hover: the template of the hover text.
        row, col: the panel, counted from 1.
        legend: whether the legend names it; one panel of a figure does.
        trace: what else the trace has, as `plotly.graph_objects.Scatter` takes it.
    """
    value, *ends = values
    style: dict[str, Any] = {
        "legendgroup": name,
        "line": {"color": colour, "dash": dash},
        "marker": {"symbol": symbol, "size": 7},
        **trace,
    }
    figure.add_trace(
        go.Scatter(
            x=list(x),
            y=[or_none(v) for v in value],
            error_y=error_bars(value, *ends, width=2) if ends else None,
            mode="lines+markers",
            name=name,
            showlegend=legend,
            hovertemplate=f"{hover}<extra></extra>",
            **style,
        ),
        row=row,
        col=col,
    )
