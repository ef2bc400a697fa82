"""Heatmaps of contribution scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.figures import ROW_NAMES, finish

if TYPE_CHECKING:
    from vit_clt.analysis.contributions import ContributionScores


def contribution_figure(grid: Sequence[Sequence[ContributionScores]]) -> go.Figure:
    """Heatmaps of C(s->l) on one shared scale: one row per token kind, one column per score.

    Targets run down, sources across; the last column is the share of the bias. Numbers in the
    cells and on hover; the grey triangle holds sources deeper than their target.
    """
    cells = [scores for row in grid for scores in row]
    n_columns = max(len(row) for row in grid)
    titles = [
        f"{ROW_NAMES[scores.tokens]} · {scores.kind}"
        + (f" ({scores.reduce.replace('_', ' ')})" if scores.kind in ("projection", "norm") else "")
        for scores in cells
    ]
    top = max(float(scores.matrix.nan_to_num().abs().max()) for scores in cells)
    figure = make_subplots(
        rows=len(grid),
        cols=n_columns,
        subplot_titles=titles,
        horizontal_spacing=0.09,
        vertical_spacing=0.42 / (len(grid) + 1),
    )
    n = len(cells[0].matrix)
    for i, row in enumerate(grid, start=1):
        for j, scores in enumerate(row, start=1):
            z = [
                [*(None if v != v else v for v in values), None if b != b else b]
                for values, b in zip(scores.matrix.tolist(), scores.bias.tolist(), strict=True)
            ]
            text = [["" if v is None else f"{v:.2f}" for v in values] for values in z]
            figure.add_trace(
                go.Heatmap(
                    z=z,
                    x=[*map(str, range(n)), "bias"],
                    y=list(map(str, range(n))),
                    text=text,
                    texttemplate="%{text}" if n <= 12 else None,
                    textfont={"size": 11 if n <= 8 else 9},
                    coloraxis="coloraxis",
                    hovertemplate="target %{y}, source %{x}: %{z:.4f}<extra></extra>",
                    hoverongaps=False,
                    xgap=1,
                    ygap=1,
                ),
                row=i,
                col=j,
            )
    figure.update_xaxes(title_text="source layer s", type="category", showgrid=False)
    figure.update_yaxes(
        title_text="target layer l", autorange="reversed", type="category", showgrid=False
    )
    first = cells[0]
    figure.update_layout(
        title={
            "text": f"C(s→l): from which depth can y_l be sparsely read?<br><sup>{first.data}, "
            f"N = {first.n_images}, teacher trajectory, L0 = {first.l0:.1f} a token</sup>",
        },
        coloraxis={
            "colorscale": "RdBu",
            "reversescale": True,
            "cmin": -top,
            "cmax": top,
            "cmid": 0,
            "colorbar": {"title": {"text": "share of ŷ"}, "thickness": 14},
        },
        width=140 + n_columns * max(360, 34 * (n + 1)),
        height=170 + len(grid) * max(340, 30 * n + 80),
        plot_bgcolor="#eeeeee",
    )
    return finish(figure)
