"""What ablating single attention heads changes, as heatmaps of layers and heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from vit_clt.analysis.causal.figure import FILL_NAMES
from vit_clt.analysis.reporting.style import BLUE, ORANGE, ROW_NAMES, finish

if TYPE_CHECKING:
    from vit_clt.analysis.causal.head_result import HeadAblations

_CELL = 30


def head_figure(ablations: HeadAblations) -> go.Figure:
    """Change of loss (total, direct, turned at random) and of the label's logit (total)."""
    panels = {
        "Δ loss (nats), total": ablations.changes("total", "loss"),
        "Δ loss, direct": ablations.changes("direct", "loss"),
        "Δ loss, turned at random": ablations.changes("random", "loss"),
        "Δ logit of the label, total": ablations.changes("total", "logit"),
    }
    figure = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=list(panels),
        horizontal_spacing=0.16,
        vertical_spacing=0.14,
    )
    for i, (name, values) in enumerate(panels.items()):
        add_head_map(figure, values, name, row=i // 2 + 1, col=i % 2 + 1, bar=(i % 2, i // 2))
    original = ablations.readings["original"]
    floor = ablations.readings["every head"]
    figure.update_layout(
        title={
            "text": f"Single attention heads ablated, {ROW_NAMES[ablations.ablated]}"
            f"<br><sup>{ablations.data}, N = {len(ablations.contrasts)}, no CLT; outputs of heads "
            f"set to {FILL_NAMES[ablations.fill]}, seed {ablations.seed}"
            f"<br>unaltered: top-1 {100 * original.top1:.2f} %, loss {original.loss:.4f} nats; "
            f"every head ablated (floor): {100 * floor.top1:.2f} %, {floor.loss:.4f} nats"
            "<br>logit: the label's less the mean of all classes; turned at random: the same "
            "change, in the head's place (colour scales differ)</sup>"
        },
        width=1000,
        height=260 + 2 * max(260, _CELL * ablations.n_layers),
    )
    return finish(figure).update_layout(margin={"t": 150, "r": 90})


def add_head_map(
    figure: go.Figure,
    values: Float[np.ndarray, "layer head"],
    name: str,
    *,
    row: int,
    col: int,
    bar: tuple[int, int],
) -> None:
    """Draw one number a head into a panel, the last layer on top; blue is positive.

    Args:
        figure: made by plotly's `make_subplots`.
        values: the numbers.
        name: what hovering calls them.
        row, col: the panel, counted from 1.
        bar: column and row of the panel's colour bar, counted from 0, in a grid of two by two.
    """
    largest = float(np.abs(values).max()) or 1.0
    n_layers, n_heads = values.shape
    figure.add_trace(
        go.Heatmap(
            z=values.tolist(),
            x=list(range(n_heads)),
            y=list(range(n_layers)),
            zmin=-largest,
            zmax=largest,
            colorscale=[[0, ORANGE], [0.5, "#ffffff"], [1, BLUE]],
            colorbar={
                "thickness": 12,
                "len": 0.42,
                "x": (0.435, 1.01)[bar[0]],
                "y": (0.79, 0.21)[bar[1]],
                "tickfont": {"size": 10},
            },
            hovertemplate=f"{name}, head %{{y}}.%{{x}}: %{{z:.4g}}<extra></extra>",
            xgap=1,
            ygap=1,
        ),
        row=row,
        col=col,
    )
    figure.update_xaxes(
        title_text="head", dtick=1, showgrid=False, title_standoff=5, row=row, col=col
    )
    figure.update_yaxes(title_text="layer", dtick=1, showgrid=False, row=row, col=col)
