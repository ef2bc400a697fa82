"""The figure of single features' effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.style import BLUE, error_bars, finish

if TYPE_CHECKING:
    from vit_clt.analysis.silencing.feature_scores import FeatureEffects


def feature_effects_figure(found: FeatureEffects) -> go.Figure:
    """Effects on y_l by feature and target; beside them, the rise of the loss with intervals."""
    effects = found.effects
    matrix = effects.on_targets.matrix.T
    with_output = "loss" in effects.on_output
    figure = make_subplots(
        cols=1 + with_output,
        subplot_titles=["share of Var(y_l)", "loss (nats)"][: 1 + with_output],
        shared_yaxes=True,
        horizontal_spacing=0.12,
    )
    figure.add_trace(
        go.Heatmap(
            z=[[None if v != v else v for v in row] for row in matrix.tolist()],
            x=list(map(str, range(matrix.shape[1]))),
            y=found.names,
            colorscale="Blues",
            hovertemplate="target %{x}, feature %{y}: %{z:.3g}<extra></extra>",
            hoverongaps=False,
            colorbar={"thickness": 14, "x": 1.02},
        ),
        row=1,
        col=1,
    )
    if with_output:
        rises = [effects.output("loss", i) for i in range(len(found.names))]
        value, low, high = (
            pd.Series([getattr(r, end) if end else float(r) for r in rises])
            for end in ("", "low", "high")
        )
        bars = go.Bar(
            x=value,
            y=found.names,
            orientation="h",
            marker_color=BLUE,
            error_x=error_bars(value, low, high),
            showlegend=False,
        )
        figure.add_trace(bars, row=1, col=2)
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_xaxes(title_text="target layer l", type="category", col=1)
    figure.update_layout(
        title={
            "text": "What does silencing one feature change?<br><sup>"
            f"{effects.how()}<br>{effects.data}, N = {effects.n}, L0 {effects.l0:.1f} a token</sup>"
        },
        width=860 if with_output else 560,
        height=220 + 22 * len(found.names),
    )
    return finish(figure).update_layout(margin_t=135)
