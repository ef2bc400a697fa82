"""Reconstruction per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.figures import BLUE, ORANGE, ROW_NAMES, finish

if TYPE_CHECKING:
    from vit_clt.analysis.reconstruction import Reconstruction


def reconstruction_figure(result: Reconstruction) -> go.Figure:
    """R^2, cosine and MSE per layer, CLS and patch rows."""
    panels = (("r2", "R² (per layer)"), ("cosine", "cosine"), ("mse", "MSE (log, raw units)"))
    figure = make_subplots(
        rows=1, cols=3, subplot_titles=[title for _, title in panels], horizontal_spacing=0.08
    )
    for column, (name, _) in enumerate(panels, start=1):
        for tokens, colour, symbol in (("cls", ORANGE, "square"), ("patch", BLUE, "circle")):
            rows = result.frame[result.frame["tokens"] == tokens]
            figure.add_trace(
                go.Scatter(
                    x=rows["layer"].tolist(),
                    y=rows[name].tolist(),
                    name=ROW_NAMES[tokens],
                    legendgroup=tokens,
                    showlegend=column == 1,
                    mode="lines+markers",
                    line={"color": colour},
                    marker={"symbol": symbol, "size": 8},
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="layer", dtick=1)
    figure.update_yaxes(type="log", col=3)
    n = int(result.frame["n_images"].iloc[0])
    l0 = float(result.frame.loc[result.frame["tokens"] == "all", "l0"].mean())
    figure.update_layout(
        title={
            "text": f"Reconstruction per layer<br><sup>{result.data}, N = {n}, teacher "
            f"trajectory, L0 = {l0:.1f} a token; R² = 0 is predicting the mean</sup>"
        },
        width=1000,
        height=400,
        legend={"orientation": "h", "y": -0.25},
    )
    return finish(figure)
