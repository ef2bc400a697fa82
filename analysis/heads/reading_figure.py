"""Where the strongest heads read: images, and beside each the direct terms by key row."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.pictures import lay_picture
from vit_clt.analysis.reporting.style import BLUE, ORANGE, finish

if TYPE_CHECKING:
    from vit_clt.analysis.heads.result import HeadStudy

HEADS = 4
"""Heads drawn of the strongest."""
_SIDE = 190


def reading_figure(study: HeadStudy) -> go.Figure:
    """A row an image: the image, then for each head its direct term by the patch that it reads."""
    heads = study.carried.heads[:HEADS]
    examples = study.examples
    down, across = study.patch_grid
    n_cols = 1 + len(heads)
    titles: list[str] = []
    for example in examples:
        titles.append(f"image {example.number}: {escape(example.label)}")
        for i, (layer, head) in enumerate(heads):
            keys = example.keys[i]
            titles.append(f"head {layer}.{head}: {keys.sum():+.2f}<br>CLS row {keys[0]:+.2f}")
    figure = make_subplots(
        rows=len(examples), cols=n_cols, subplot_titles=titles, horizontal_spacing=0.02
    )
    for row, example in enumerate(examples, start=1):
        keys = example.keys[: len(heads)]
        patches = keys[:, -down * across :].reshape(len(heads), down, across)
        largest = float(np.abs(patches).max()) or 1.0
        for col in range(1, n_cols + 1):
            _background(figure, study, example.picture, row, col)
            if col > 1:
                figure.add_trace(
                    go.Heatmap(
                        z=patches[col - 2].tolist(),
                        zmin=-largest,
                        zmax=largest,
                        colorscale=[[0, ORANGE], [0.5, "#ffffff"], [1, BLUE]],
                        opacity=0.75,
                        showscale=False,
                        hovertemplate="patch (%{y}, %{x}): %{z:.4g}<extra></extra>",
                    ),
                    row=row,
                    col=col,
                )
    figure.update_annotations(font_size=12)
    figure.update_layout(
        title={
            "text": "Where the strongest heads read: direct terms by the patch read"
            "<br><sup>in logits, blue raises the label's logit, orange lowers it; one colour scale "
            "an image; above each map the head's term on this image, and the part of it read on "
            "the CLS row</sup>"
        },
        width=60 + _SIDE * n_cols,
        height=150 + (_SIDE + 40) * len(examples),
    )
    return finish(figure).update_layout(margin={"t": 130, "l": 20, "r": 20, "b": 20})


def _background(
    figure: go.Figure, study: HeadStudy, picture: np.ndarray, row: int, col: int
) -> None:
    down, across = study.patch_grid
    # without a trace, axes are not drawn
    figure.add_trace(
        go.Scatter(x=[None], y=[None], showlegend=False, hoverinfo="skip"), row=row, col=col
    )
    axis = next(figure.select_xaxes(row=row, col=col)).plotly_name.removeprefix("xaxis")
    hidden = {"visible": False, "constrain": "domain"}
    figure.update_xaxes(range=[-0.5, across - 0.5], **hidden, row=row, col=col)
    figure.update_yaxes(
        range=[down - 0.5, -0.5], scaleanchor=f"x{axis}", **hidden, row=row, col=col
    )
    lay_picture(figure, picture, str(axis), (down, across))
