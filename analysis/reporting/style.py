"""What all plotly figures share: row names, colour-blind-safe colours, log axes, font, margins."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, floor, isfinite, isnan, log10
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

ROW_NAMES = {
    "cls": "CLS rows",
    "register": "register rows",
    "patch": "patch rows",
    "all": "all rows",
}
# Okabe and Ito's palette: distinguishable with every common form of colour blindness
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
SKY, AMBER = "#56B4E9", "#E69F00"
INK, FAINT = "#222222", "#bbbbbb"
PLATE = "#eeeeee"
"""Behind heatmaps, where a cell has no value."""
# measured series; purple, grey and ink are for floors, controls and the model
SERIES = (BLUE, ORANGE, GREEN, AMBER, SKY)
MOST_LAYERS_WITH_NUMBERS = 12
"""Above this, numbers in the cells of a heatmap of layers would be smaller than print."""
LEAST_POINTS = 5
"""Percentage points that an axis of accuracies shows at the least."""
_MARKER = 0.1
"""Percentage points above 100 on such an axis, so that a marker at 100 is not cut in two."""
ZERO_LINE = {"zeroline": True, "zerolinecolor": INK, "zerolinewidth": 1}
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": INK}
_FEWEST, _MOST = 3, 8  # ticks of a logarithmic axis
_AIR = 1.02  # between the data and the ends of a logarithmic axis


def finish(figure: go.Figure) -> go.Figure:
    """The font, template and margins that all figures share."""
    figure.update_layout(
        font=_FONT,
        template="plotly_white",
        margin={"l": 60, "r": 30, "t": 110, "b": 60},
        title={"x": 0.02, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 22}},
    )
    return figure


def error_bars(
    value: pd.Series, low: pd.Series, high: pd.Series, **style: float | int | str
) -> dict[str, Any]:
    """`error_x` or `error_y` of a trace, from `low` to `high`; thin, unless `style` says more."""
    return {
        "array": [or_none(v) for v in high - value],
        "arrayminus": [or_none(v) for v in value - low],
        "thickness": 1,
        **style,
    }


def log_axis(figure: go.Figure, values: Iterable[float | int], **where: Any) -> None:
    """Make y axes logarithmic, with ticks that suit `values`.

    Plotly's own choice shows a lone tick, or none, on less than a decade, and on several decades
    ticks so dense that they overlap.

    Args:
        figure: whose axes.
        values: all that is drawn there; those not above 0 have no place on such an axis.
        where: which axes, as `update_yaxes` takes it (row, col, selector).
    """
    ticks = log_ticks(values)
    texts = [f"{tick:,.12g}".replace("e-0", "e-") for tick in ticks]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=texts, **where)


def accuracy_axis(figure: go.Figure, *, row: int, col: int, axis: Literal["x", "y"] = "y") -> None:
    """Give an axis of accuracies in percent, or of their changes in points, at least 5 points.

    On a narrower range a single image of a few hundred looks like an effect. The points are around
    what is drawn, but none above 100. Call it when all is drawn.

    Args:
        figure: whose axis.
        row: row of the panel.
        col: column of the panel.
        axis: along which the accuracies are drawn.
    """
    place = getattr(figure.get_subplot(row, col), f"{axis}axis")
    name = place.plotly_name.replace("axis", "")
    ends: list[float] = []
    for trace in figure.data:
        if (trace[f"{axis}axis"] or axis) == name:
            bars = trace[f"error_{axis}"]
            values = np.array(trace[axis], dtype=float)
            for sign, lengths in ((1, bars.array), (-1, bars.arrayminus)):
                reach = 0 if lengths is None else np.nan_to_num(np.array(lengths, dtype=float))
                ends += (values + sign * reach).tolist()
    drawn = [end for end in ends if isfinite(end)]
    if drawn and max(drawn) - min(drawn) < LEAST_POINTS:
        around = (max(drawn) + min(drawn) + LEAST_POINTS) / 2
        end = max(min(around, 100 + _MARKER), max(drawn))
        place.range = [end - LEAST_POINTS, end]


def log_ticks(values: Iterable[float | int]) -> list[float]:
    """Round numbers for a logarithmic axis: three to eight within the range of `values`, ascending.

    Decades (every second, third, ... of many), 1-3 or 1-2-5 in each, or even steps where the range
    is narrow; two at the least around a single value.
    """
    positive = [float(v) for v in values if isfinite(v) and v > 0]
    if not positive:
        return []
    # plotly leaves a margin around the data, wide enough for ticks on a range without extent
    low, high = min(positive) / _AIR, max(positive) * _AIR
    first, last = floor(log10(low)), ceil(log10(high))
    for digits in ((1,), (1, 3), (1, 2, 5)):
        found = [
            tick
            for power in range(first, last + 1)
            for digit in digits
            if low <= (tick := float(f"{digit}e{power}")) <= high
        ]
        if len(found) >= _FEWEST:
            return found[:: ceil(len(found) / _MOST)]
    return _even_ticks(low, high)


def span(values: Iterable[float | int]) -> str:
    """Lowest to highest with one decimal, for captions; one number where they are the same."""
    found = list(values)
    low, high = f"{min(found):.1f}", f"{max(found):.1f}"
    return low if low == high else f"{low} to {high}"


def or_none(value: float) -> float | None:
    """None, which plotly draws as a gap, in the place of NaN."""
    return None if isnan(value) else value


def cell_text(value: float | None) -> str:
    """Two decimals for a cell of a heatmap; nothing for a gap, and where they would be "0.00"."""
    # that in every second cell would hide the rest; hover has all digits
    if value is None or isnan(value) or abs(value) < 0.005:
        return ""
    return f"{value:.2f}".replace("0.", ".", 1)


def three_digits(value: float) -> str:
    """Three decimals, or "undefined" for NaN."""
    return "undefined" if isnan(value) else f"{value:.3f}"


def _even_ticks(low: float, high: float) -> list[float]:
    power = floor(log10(high - low))
    for step in (float(f"{digit}e{p}") for p in (power, power - 1) for digit in (5, 2, 1)):
        inside = range(ceil(low / step), floor(high / step) + 1)
        if len(inside) >= _FEWEST:
            break
    # a multiple of 0.1 is not always the float that is written so
    return [float(f"{i * step:.12g}") for i in inside]
