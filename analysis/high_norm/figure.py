"""High-norm rows by layer, where they lie, and images with them."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import add_points
from vit_clt.analysis.reporting.pictures import lay_picture
from vit_clt.analysis.reporting.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    finish,
    log_axis,
    or_none,
)

if TYPE_CHECKING:
    from vit_clt.analysis.high_norm.result import HighNorm

_ACROSS = 4  # maps side by side

# a series: kind of rows, name in the legend, colour, dash, symbol
_NORMS = (
    ("cls", "CLS", GREEN, "solid", "circle"),
    ("register", "registers", PURPLE, "solid", "square"),
    ("ordinary", "ordinary patches", BLUE, "solid", "diamond"),
    ("high_norm", "high-norm patches", ORANGE, "solid", "star"),
    ("random", "floor: as many random patches", GREY, "dash", "x"),
)
_FVU = (
    ("patch", "patch rows", BLUE, "solid", "diamond-open"),
    ("ordinary", "patch rows without the high-norm ones", ORANGE, "solid", "star-open"),
    ("patch_without_random", "floor: without as many random ones", GREY, "dash", "x-open"),
)


def high_norm_figure(result: HighNorm) -> go.Figure:
    """Norms of the stream, shares of variation and of error, FVU with and without, and L0."""
    titles = ["median norm of the stream (log)", "share of ‖y − mean‖² (%)"]
    if result.clt is not None:
        titles += ["FVU of patch rows", "share of the squared error (%)"]
        titles += ["active features a row (L0)", "silent features (%)"]
    n_rows = len(titles) // 2
    spacing = {"horizontal_spacing": 0.1, "vertical_spacing": 0.3 / n_rows}
    figure = make_subplots(rows=n_rows, cols=2, subplot_titles=titles, **spacing)
    _series(figure, result, _NORMS, "stream_median", 1, 1)
    layers = list(range(result.n_layers))
    most = result.by_layer("patch", "stream_max")
    for values, name, dash in (
        (most, "largest of all patches", "dot"),
        (result.limits, "limit of the rule", "dashdot"),
    ):
        figure.add_scatter(
            x=layers,
            y=values.tolist(),
            mode="lines",
            name=name,
            line={"color": INK, "dash": dash, "width": 1.5},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.4g}}<extra></extra>",
            row=1,
            col=1,
        )
    drawn = [*most, *result.limits, *result.frame["stream_median"].dropna()]
    log_axis(figure, drawn, row=1, col=1)
    shares = [each for each in _NORMS if each[0] in ("high_norm", "random")]
    _series(figure, result, shares, "spread_share", 1, 2, 100)
    if result.clt is not None:
        _series(figure, result, _FVU, "fvu", 2, 1)
        _series(figure, result, shares, "error_share", 2, 2, 100)
        _series(figure, result, _NORMS, "l0", 3, 1)
        _series(figure, result, _NORMS, "silent", 3, 2, 100)
        figure.update_yaxes(rangemode="tozero", row=3)
    figure.update_yaxes(rangemode="tozero", col=2)
    figure.update_xaxes(dtick=1 if result.n_layers <= 13 else 3)
    figure.update_xaxes(title_text="layer", title_standoff=5, row=n_rows)
    height = 220 + 260 * n_rows
    figure.update_layout(
        title={
            "text": f"High-norm patch rows by layer<br><sup>{result.data}, N = {result.n}, model "
            f"{result.model.rsplit('/', 1)[-1]}, {_clt_text(result)}; teacher trajectory<br>"
            f"high-norm: {result.rule.text()}<br>shares are of all rows; bars: 95 % bootstrap over "
            f"images; floor: as many random patch rows, seed {result.seed}</sup>"
        },
        width=1000,
        height=height,
        legend={"orientation": "h", "y": -50 / (height - 210), "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 135})


def _clt_text(result: HighNorm) -> str:
    if result.clt is None:
        return "no CLT"
    return f"CLT {result.clt.rsplit('/', 1)[-1]}, L0 {result.facts().l0:.1f}"


def _series(
    figure: go.Figure,
    result: HighNorm,
    series: tuple[tuple[str, str, str, str, str], ...] | list[tuple[str, str, str, str, str]],
    column: str,
    row: int,
    col: int,
    factor: int = 1,
) -> None:
    # every name stands once in the legend, where it is drawn first
    known = {trace.name for trace in figure.data}
    for kind, name, colour, dash, symbol in series:
        if kind not in result.kinds:
            continue
        part = result.frame[result.frame["kind"] == kind]
        ends = [end for end in ("", "_low", "_high") if column + end in part]
        values = tuple((part[column + end] * factor).reset_index(drop=True) for end in ends)
        add_points(
            figure,
            list(range(result.n_layers)),
            values,
            name=name,
            colour=colour,
            dash=dash,
            symbol=symbol,
            hover=f"{name}, layer %{{x}}: %{{y:.4g}}",
            legend=name not in known,
            row=row,
            col=col,
        )


def map_figure(result: HighNorm) -> go.Figure:
    """The share of images in which each patch of the grid is high-norm, a map a layer."""
    n, down, across = result.image_share.shape
    n_rows = ceil(n / _ACROSS)
    total = result.by_layer("high_norm", "rows")
    titles = [f"layer {l}: {total[l] / result.n:.2f} an image" for l in range(n)]
    figure = make_subplots(
        rows=n_rows,
        cols=_ACROSS,
        subplot_titles=titles,
        horizontal_spacing=0.04,
        vertical_spacing=min(0.3 / n_rows, 0.16),
    )
    for l, shares in enumerate(result.image_share):
        place = {"row": l // _ACROSS + 1, "col": l % _ACROSS + 1}
        figure.add_heatmap(
            z=(100 * shares).tolist(),
            coloraxis="coloraxis",
            hovertemplate="patch (%{y}, %{x}): %{z:.2f} % of images<extra></extra>",
            **place,
        )
        axis = f"x{l + 1 if l else ''}"
        figure.update_yaxes(scaleanchor=axis, range=[down - 0.5, -0.5], **place)
        figure.update_xaxes(range=[-0.5, across - 0.5], **place)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain")
    figure.update_layout(
        title={
            "text": f"Where high-norm patches lie<br><sup>{result.data}, N = {result.n}; share of "
            "images in which the patch is high-norm; one colour scale</sup>"
        },
        coloraxis={
            "colorscale": "Blues",
            "cmin": 0,
            "cmax": max(1.0, 100 * float(result.image_share.max())),
            "colorbar": {"title": {"text": "% of images"}, "thickness": 12},
        },
        width=1000,
        height=150 + 240 * n_rows,
    )
    return finish(figure)


def marked_figure(result: HighNorm) -> go.Figure:
    """A few images with their high-norm patches framed, above the norms of their patches."""
    images = result.marked
    layer = images[0].layer
    titles = [f"image {each.image}: {int(each.high.sum())} high-norm" for each in images]
    figure = make_subplots(
        rows=2,
        cols=len(images),
        subplot_titles=[*titles, *("norms" for _ in images)],
        horizontal_spacing=0.03,
        vertical_spacing=0.1,
    )
    for i, each in enumerate(images, start=1):
        down, across = each.norms.shape
        name = i if i > 1 else ""
        lay_picture(figure, each.picture, str(name), (down, across))
        at = np.argwhere(each.high)
        side = max(4, 180 / max(down, across))
        figure.add_scatter(
            x=[or_none(v) for v in pd.Series(at[:, 1], dtype=float)],
            y=[or_none(v) for v in pd.Series(at[:, 0], dtype=float)],
            mode="markers",
            marker={"symbol": "square-open", "size": side, "color": ORANGE, "line": {"width": 2}},
            text=[f"{each.norms[i, j]:.4g}" for i, j in at],
            hovertemplate="patch (%{y}, %{x}): norm %{text}<extra></extra>",
            showlegend=False,
            row=1,
            col=i,
        )
        figure.add_heatmap(
            z=each.norms.tolist(),
            coloraxis="coloraxis",
            hovertemplate="patch (%{y}, %{x}): norm %{z:.4g}<extra></extra>",
            row=2,
            col=i,
        )
        for row in (1, 2):
            axis = i if row == 1 else len(images) + i
            scale = f"x{axis if axis > 1 else ''}"
            figure.update_yaxes(range=[down - 0.5, -0.5], scaleanchor=scale, row=row, col=i)
            figure.update_xaxes(range=[-0.5, across - 0.5], row=row, col=i)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain")
    some = result.by_layer("high_norm", "rows").sum() > 0
    most = "Images with the most high-norm patches" if some else "Images (no patch is high-norm)"
    figure.update_layout(
        title={
            "text": f"{most}, layer {layer}<br><sup>{result.data}; "
            f"framed: norm above {result.limits[layer]:.4g}; median {result.medians[layer]:.4g}"
            "</sup>"
        },
        coloraxis={"colorscale": "Blues", "colorbar": {"thickness": 12, "len": 0.5, "y": 0.2}},
        width=1000,
        height=620,
    )
    return finish(figure)
