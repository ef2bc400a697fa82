"""Features switched off, as maps over pairs of factor values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.style import finish
from vit_clt.analysis.stats.names import layers_text
from vit_clt.hooks.rows import REGION_NAMES

if TYPE_CHECKING:
    from vit_clt.analysis.factors.suppression import Suppression


def suppression_figure(result: Suppression) -> go.Figure:
    """Maps over pairs of values: accuracy unaltered, without the group and without random features
    (mean over sets); below, where the group is active, and both rises in loss."""
    random_top1, random_loss = (
        np.mean([maps[name] for name in result.randoms], axis=0)
        for maps in (result.correct, result.loss)
    )
    before = result.loss["original"]
    panels = (
        ("accuracy (%), unaltered", 100 * result.correct["original"], 1),
        ("without the group", 100 * result.correct["group"], 1),
        ("without random features", 100 * random_top1, 1),
        ("group features active", result.activity["group"], 2),
        ("Δ loss (nats), the group", result.loss["group"] - before, 3),
        ("Δ loss, random features", random_loss - before, 3),
    )
    figure = make_subplots(
        rows=2,
        cols=3,
        subplot_titles=[title for title, *_ in panels],
        horizontal_spacing=0.1,
        vertical_spacing=0.16,
    )
    for i, (title, values, axis) in enumerate(panels):
        figure.add_trace(
            go.Heatmap(
                z=values.tolist(),
                x=list(map(str, result.values[1])),
                y=list(map(str, result.values[0])),
                coloraxis=f"coloraxis{axis if axis > 1 else ''}",
                xgap=1,
                ygap=1,
                hovertemplate=f"{title}, {result.factors[0]} %{{y}}, {result.factors[1]} %{{x}}: "
                "%{z:.4g}<extra></extra>",
            ),
            row=1 + i // 3,
            col=1 + i % 3,
        )
    a, b = result.factors
    figure.update_xaxes(type="category", title_text=b, title_standoff=4, showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_yaxes(title_text=a, title_standoff=4, col=1)
    extent = float(max(np.abs(values).max() for _, values, axis in panels if axis == 3))
    bar = {"thickness": 10, "len": 0.4, "yanchor": "middle"}
    low = min(
        90.0, 10 * np.floor(min(values.min() for _, values, axis in panels if axis == 1) / 10)
    )
    rows = "; ".join(
        f"{label}: top-1 {100 * top1:.2f} %, loss {loss:.4f} nats"
        for label, top1, loss in (
            ("unaltered", *_mean(result, ["original"])),
            ("without the group", *_mean(result, ["group"])),
            ("random (mean)", *_mean(result, result.randoms)),
        )
    )
    group = result.follows()
    random = float(np.mean([result.follows(name) for name in result.randoms]))
    change = result.group_minus_random()
    figure.update_layout(
        title={
            "text": f"What breaks without {result.n_features} features<br><sup>{result.data}, "
            f"N = {result.n}, codes 0 on {REGION_NAMES[result.region]}, layers "
            f"{layers_text(result.layers)}; CLT with error nodes, stream inputs, readout: "
            f"{result.readout}<br>{rows}<br>Δ loss of group minus random {change:+.4f} "
            f"({change.low:+.4f} to {change.high:+.4f}, paired); {len(result.randoms)} random sets "
            f"matched in rate, {100 * result.overlap:.0f} % of the group in them; seed "
            f"{result.seed}<br>rank correlation, over pairs, of active features and Δ loss: group "
            f"{group:.2f}, random {random:.2f} (mean)</sup>"
        },
        coloraxis={
            "colorscale": "Blues",
            "cmin": low,
            "cmax": 100,
            "colorbar": {**bar, "x": 1.01, "y": 0.8},
        },
        coloraxis2={"colorscale": "Greens", "cmin": 0, "colorbar": {**bar, "x": 0.27, "y": 0.2}},
        coloraxis3={
            "colorscale": "RdBu",
            "reversescale": True,
            "cmin": -extent,
            "cmax": extent,
            "colorbar": {**bar, "x": 1.01, "y": 0.2},
        },
        width=1000,
        height=840,
    )
    return finish(figure).update_layout(margin={"t": 175})


def _mean(result: Suppression, names: list[str]) -> tuple[float, float]:
    return result.readings.mean(names), result.readings.mean(names, "loss")
