"""Accuracy and loss against the first layer replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, add_levels, add_points
from vit_clt.analysis.reporting.style import (
    BLUE,
    ORANGE,
    ROW_NAMES,
    accuracy_axis,
    finish,
    log_axis,
)

if TYPE_CHECKING:
    from vit_clt.analysis.fit.cascade_study import Cascade


def cascade_figure(result: Cascade) -> go.Figure:
    """Accuracy and loss against the first layer replaced, a row of panels per token kind."""
    frame = result.to_frame()
    n_rows = len(result.tokens)
    titles = ("accuracy (%)", "cross-entropy (nats, log)")
    figure = make_subplots(
        rows=n_rows,
        cols=2,
        subplot_titles=[f"{ROW_NAMES[kind]} · {t}" for kind in result.tokens for t in titles],
        horizontal_spacing=0.1,
        vertical_spacing=0.28 / (n_rows + 1),
    )
    levels = {"original": "baseline", "floor_mean": "floor_mean", "floor_zero": "floor_zero"}
    styles = {"stream": (BLUE, "solid", "circle"), "teacher": (ORANGE, "dash", "square")}
    for i, kind in enumerate(result.tokens, start=1):
        of_kind = frame[frame["tokens"] == kind]
        for column, (prefix, measure, factor) in enumerate(
            (("", "top1", 100), ("loss_", "loss", 1)), start=1
        ):
            place: dict[str, Any] = {"row": i, "col": column, "legend": i == column == 1}
            floors = of_kind[of_kind["inputs"] == result.inputs[0]]
            add_levels(
                figure,
                floors["first_layer"].tolist(),
                {LEVELS[level]: factor * floors[prefix + name] for level, name in levels.items()},
                hover=", from %{x}",
                **place,
            )
            for inputs in result.inputs:
                rows = of_kind[of_kind["inputs"] == inputs]
                colour, dash, symbol = styles[inputs]
                add_points(
                    figure,
                    rows["first_layer"].tolist(),
                    tuple(factor * rows[measure + end] for end in ("", "_low", "_high")),
                    name=f"CLT, {inputs} inputs",
                    colour=colour,
                    dash=dash,
                    symbol=symbol,
                    hover=inputs + ", from %{x}: %{y:.3f}",
                    **place,
                )
        accuracy_axis(figure, row=i, col=1)
        losses = of_kind.filter(like="loss")
        log_axis(figure, losses.to_numpy().ravel().tolist(), row=i, col=2)
    last = result.n_layers - 1
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text=f"first layer s replaced (s to {last})", row=n_rows)
    figure.update_layout(
        title={
            "text": f"The CLT in place of layers s to {last}<br><sup>{result.data}, "
            f"N = {result.readings.n}, readout: {result.readout}, L0 = {result.mean_l0:.1f} a "
            "token and layer; bars: 95 % bootstrap over images</sup>",
        },
        width=1000,
        height=200 + 300 * n_rows,
        legend={"orientation": "h", "y": -60 / (300 * n_rows), "yanchor": "top"},
    )
    return finish(figure)
