"""What thresholds in place of top-k cost, per token kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, Level
from vit_clt.analysis.reporting.style import BLUE, ORANGE, ROW_NAMES, accuracy_axis, finish

if TYPE_CHECKING:
    from vit_clt.analysis.fit.threshold_study import ThresholdCost

_PANELS = {
    "l0": ("L0, mean over layers", 1),
    "r2": ("R², mean over layers", 1),
    "top1": ("accuracy (%)", 100),
    "loss": ("cross-entropy (nats)", 1),
}
_VERSIONS = {
    "before": Level("top-k", BLUE, "solid", "circle"),
    "after": Level("thresholds", ORANGE, "solid", "square"),
    "baseline": LEVELS["original"],
    "floor_mean": LEVELS["floor_mean"],
    "floor_zero": LEVELS["floor_zero"],
}


def threshold_figure(result: ThresholdCost) -> go.Figure:
    """L0, R^2, accuracy and loss per token kind; floors and the model beside the last two."""
    figure = make_subplots(
        rows=1,
        cols=len(_PANELS),
        subplot_titles=[title for title, _ in _PANELS.values()],
        horizontal_spacing=0.06,
    )
    kinds = [ROW_NAMES[tokens] for tokens in result.frame["tokens"]]
    for column, (measure, (_, factor)) in enumerate(_PANELS.items(), start=1):
        for version, style in _VERSIONS.items():
            if f"{measure}_{version}" not in result.frame:
                continue
            figure.add_trace(
                go.Scatter(
                    x=kinds,
                    y=(result.frame[f"{measure}_{version}"] * factor).tolist(),
                    mode="markers",
                    name=style.label,
                    legendgroup=version,
                    showlegend=measure == "loss",
                    marker=style.marker(9),
                    hovertemplate=f"{style.label}, %{{x}}: %{{y:.4g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    accuracy_axis(figure, row=1, col=1 + list(_PANELS).index("top1"))
    figure.update_layout(
        title={
            "text": f"Thresholds in place of top-k<br><sup>{result.data}, N = {result.n}; "
            f"thresholds fitted on {result.fitted_on}; L0 and R² on the teacher trajectory, "
            f"the rest with all MLPs replaced (stream)<br>readout: {result.readout}, seed "
            f"{result.seed}</sup>"
        },
        width=1080,
        height=440,
        legend={"orientation": "h", "y": -0.15},
    )
    return finish(figure)
