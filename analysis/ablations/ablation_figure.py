"""Accuracy and loss of one kept set, among the references it is read against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS
from vit_clt.analysis.reporting.style import BLUE, ROW_NAMES, accuracy_axis, error_bars, finish

if TYPE_CHECKING:
    from vit_clt.analysis.ablations.ablation import Ablation

_REFERENCES = ("original", "full", "bias_only", "floor_mean", "floor_zero")
_PANELS = (("top1", "accuracy (%)", 100), ("loss", "cross-entropy (nats)", 1))


def kept_set_figure(ablation: Ablation) -> go.Figure:
    """A row per version of the model: accuracy left, loss right, with 95 % intervals."""
    frame = ablation.to_frame().set_index("version").loc[["kept", *_REFERENCES]]
    levels = [LEVELS[name] for name in _REFERENCES]
    labels = [f"sources {ablation.sources or 'none'} kept", *(level.label for level in levels)]
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    colours = [BLUE, *(level.colour for level in levels)]
    for column, (measure, title, factor) in enumerate(_PANELS, start=1):
        value, low, high = (factor * frame[f"{measure}{end}"] for end in ("", "_low", "_high"))
        figure.add_trace(
            go.Scatter(
                x=value.tolist(),
                y=labels,
                error_x=error_bars(value, low, high),
                mode="markers",
                marker={
                    "color": colours,
                    "symbol": ["circle", *(level.symbol for level in levels)],
                    "size": 9,
                    "line": {"width": 2, "color": colours},
                },
                hovertemplate="%{y}: %{x:.4f}<extra></extra>",
                showlegend=False,
            ),
            row=1,
            col=column,
        )
        figure.update_xaxes(title_text=title, row=1, col=column)
    accuracy_axis(figure, row=1, col=1, axis="x")
    figure.update_yaxes(autorange="reversed")
    layers = ", ".join(map(str, ablation.targets))
    no_op = " — these rows cannot reach the output: a no-op" if ablation.no_op else ""
    figure.update_layout(
        title={
            "text": f"Kept sources of layer {layers}, {ROW_NAMES[ablation.tokens]}{no_op}<br><sup>"
            f"{ablation.data}, N = {ablation.n}, teacher trajectory, L0 = {ablation.l0:.1f}, "
            f"dropped terms: {ablation.fill}, seed {ablation.seed}; bars: 95 % bootstrap over "
            "images</sup>",
        },
        width=900,
        height=400,
    )
    return finish(figure).update_layout(margin={"t": 90})
