"""What C and E claim beside what the ViT's own MLPs do: three heatmaps on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.style import (
    BLUE,
    GREY,
    MOST_LAYERS_WITH_NUMBERS,
    ROW_NAMES,
    ZERO_LINE,
    cell_text,
    finish,
    or_none,
)
from vit_clt.analysis.stats.intervals import Interval

if TYPE_CHECKING:
    from vit_clt.analysis.auditing.claims_result import Claims

_TITLE_SIZE, _TITLE_LETTERS = 12, 36  # a line of a title is no wider than the narrowest panel


def claims_figure(found: Claims) -> go.Figure:
    """Where y_l can be read (C), what the CLT says acts (E), and what acts (the ViT itself).

    Targets run down, sources across. Below, what silencing or ablating each source does to the
    loss, with 95 % bootstrap intervals over images.
    """
    scores, effects, truth = found.scores, found.effects, found.truth
    matrices = scores.matrix.numpy(), effects.matrix.numpy(), truth.matrix("total")
    n = len(matrices[0])
    heat = max(300, 27 * n + 40)
    figure = make_subplots(
        rows=2,
        cols=3,
        specs=[[{}, {}, {}], [{"colspan": 3}, None, None]],
        row_heights=[heat, 230],
        horizontal_spacing=0.07,
        vertical_spacing=0.16,
        subplot_titles=(
            f"C(s→l), where y_l can be read<br>{_verdict(found.reads.verdict)}",
            f"E(s→l), what the CLT says acts<br>{_verdict(found.acts.verdict)}",
            "what acts in the ViT itself<br>MLP_s ablated, total effect on y_l",
            "rise of the loss without source s (nats)",
        ),
    )
    figure.update_annotations(font_size=_TITLE_SIZE)
    for column, (matrix, name) in enumerate(
        zip(matrices, ("C", "E", "the ViT's effect"), strict=True), start=1
    ):
        figure.add_trace(
            go.Heatmap(
                z=[[or_none(v) for v in row] for row in matrix.tolist()],
                x=list(map(str, range(n))),
                y=list(map(str, range(n))),
                text=[[cell_text(v) for v in row] for row in matrix.tolist()],
                texttemplate="%{text}" if n <= MOST_LAYERS_WITH_NUMBERS else None,
                textfont={"size": 11 if n <= 8 else 9},
                coloraxis="coloraxis",
                hovertemplate=f"{name}, source %{{x}}, target %{{y}}: %{{z:.4f}}<extra></extra>",
                hoverongaps=False,
                xgap=1,
                ygap=1,
            ),
            row=1,
            col=column,
        )
    silenced = effects.output_row
    assert silenced is not None  # a classifier was given
    rise, draws = truth.loss_rise("total")
    ablated = [Interval.of(float(v), draws[:, s]) for s, v in enumerate(rise)]
    _bars(figure, silenced, "E(s→output): all features of s silenced in the replaced ViT", BLUE)
    _bars(figure, ablated, "MLP_s of the ViT itself ablated", GREY)
    figure.update_xaxes(title_text="source layer s", type="category", showgrid=False, row=1)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, row=1)
    figure.update_yaxes(title_text="target layer l", row=1, col=1)
    figure.update_xaxes(title_standoff=5)
    figure.update_xaxes(title_text="source layer s", dtick=1, row=2)
    figure.update_yaxes(**ZERO_LINE, row=2)
    top = _largest(matrices)
    figure.update_layout(
        title={
            "text": f"What C and E claim, and what acts: {ROW_NAMES[scores.tokens]}<br><sup>"
            f"{found.caption()}<br>scores of one half of the images, the ViT's effects of the "
            f"other (N = {truth.n}); silenced and ablated: all rows at their mean over images</sup>"
        },
        coloraxis={
            "colorscale": "RdBu",
            "reversescale": True,
            "cmin": -top,
            "cmax": top,
            "colorbar": {
                "title": {"text": "C: share<br>of ŷ_l;<br>E, ViT:<br>of Var(y_l)"},
                "thickness": 14,
                "len": heat / (heat + 300),
                "yanchor": "top",
                "y": 1.02,
            },
        },
        barmode="group",
        width=max(1150, 3 * (27 * n + 60) + 170),
        height=heat + 570,
        legend={"orientation": "h", "y": -0.1},
    )
    return finish(figure).update_layout(margin_t=185)


def _bars(figure: go.Figure, values: Sequence[Interval], name: str, colour: str) -> None:
    figure.add_trace(
        go.Bar(
            x=list(range(len(values))),
            y=[float(each) for each in values],
            error_y={
                "array": [each.high - each for each in values],
                "arrayminus": [each - each.low for each in values],
                "thickness": 1,
                "width": 2,
            },
            name=name,
            marker_color=colour,
            hovertemplate="source %{x}: %{y:.4f} nats<extra></extra>",
        ),
        row=2,
        col=1,
    )


def _largest(matrices: Sequence[Float[np.ndarray, "target source"]]) -> float:
    return max(float(np.nanmax(np.abs(matrix))) for matrix in matrices)


def _verdict(text: str) -> str:
    """A verdict on lines that fit above a panel."""
    return "<br>".join(wrap(text, _TITLE_LETTERS))
