"""The losses of all sets of k source layers, with the chosen one marked among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, add_levels
from vit_clt.analysis.reporting.style import (
    BLUE,
    FAINT,
    GREY,
    ORANGE,
    ROW_NAMES,
    error_bars,
    finish,
)

if TYPE_CHECKING:
    from vit_clt.analysis.ablations.all_sets_result import KeepSets

_RULES = {"last": "deepest k", "bottom": "lowest score"}
_REFERENCES = ("original", "full", "floor_mean", "floor_zero")


def keep_set_figure(result: KeepSets) -> go.Figure:
    """Left: a histogram of the losses above the marked sets; right: what each layer changes."""
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {"rowspan": 2}], [{}, None]],
        shared_xaxes=True,
        column_widths=[0.62, 0.38],
        row_heights=[0.55, 0.45],
        horizontal_spacing=0.09,
        vertical_spacing=0.04,
        subplot_titles=(f"loss of {result.extent}", "mean loss with and without a layer"),
    )
    loss = result.loss.numpy()
    counts, edges = np.histogram(loss, bins=min(60, max(10, len(loss) // 8)))
    figure.add_trace(
        go.Bar(
            x=((edges[1:] + edges[:-1]) / 2).tolist(),
            y=counts.tolist(),
            width=np.diff(edges).tolist(),
            marker={"color": FAINT, "line": {"color": FAINT, "width": 1}},
            hovertemplate="%{x:.4f} nats: %{y} sets<extra></extra>",
            showlegend=False,
        ),
        row=1,
        col=1,
    )
    marks = result.marks()
    # rankings that choose the same set share a row
    names = marks.groupby("sources", sort=False)["set"].agg(list)
    marks = marks.drop_duplicates("sources")
    labels = [
        f"{', '.join(_RULES.get(name, name) for name in names[r.sources])}<br>"
        f"{{{r.sources}}}, rank {r.rank_loss:,}"
        for r in marks.itertuples()
    ]
    figure.add_trace(
        go.Scatter(
            x=marks["loss"].tolist(),
            y=list(range(len(labels))),
            text=labels,
            error_x=error_bars(
                *(marks[f"loss_above_chosen{end}"] for end in ("", "_low", "_high")),
                thickness=1.5,
                color=ORANGE,
            ),
            mode="markers",
            marker={
                "color": [BLUE, *[ORANGE] * (len(marks) - 1)],
                "symbol": ["star", *["circle"] * (len(marks) - 1)],
                "size": [13, *[9] * (len(marks) - 1)],
            },
            customdata=(100 * marks["top1"]).tolist(),
            hovertemplate="%{text}: %{x:.4f} nats, %{customdata:.2f} %<extra></extra>",
            showlegend=False,
        ),
        row=2,
        col=1,
    )
    levels = {LEVELS[name]: float(result.readings[name].loss) for name in _REFERENCES}
    for row, ends in ((1, [0, int(counts.max())]), (2, [-0.5, len(labels) - 0.5])):
        add_levels(figure, ends, levels, vertical=True, legend=row == 1, row=row, col=1)
    layers = result.layers()
    for r in layers.itertuples():
        figure.add_trace(
            go.Scatter(
                x=[r.loss_without, r.loss_with],
                y=[r.source, r.source],
                mode="lines",
                line={"color": GREY, "width": 1.5},
                hoverinfo="skip",
                showlegend=False,
            ),
            row=1,
            col=2,
        )
    for column, label, colour, symbol in (
        ("loss_with", "sets with the layer", BLUE, "circle"),
        ("loss_without", "sets without it", ORANGE, "circle-open"),
    ):
        figure.add_trace(
            go.Scatter(
                x=layers[column].tolist(),
                y=layers["source"].tolist(),
                mode="markers",
                name=label,
                marker={"color": colour, "symbol": symbol, "size": 9},
                customdata=layers[["score", "explained"]].to_numpy().tolist(),
                hovertemplate=f"source %{{y}}, {label}: %{{x:.4f}} nats<br>score "
                "%{customdata[0]:.3f}, membership explains %{customdata[1]:.2f}<extra></extra>",
            ),
            row=1,
            col=2,
        )
    no_op = " — these rows cannot reach the output: a no-op" if result.no_op else ""
    below = {"row": 2, "col": 1}
    paired = marks["loss"] - marks["loss_above_chosen"]
    reach = [
        *(edges[[0, -1]]),
        *levels.values(),
        *(paired + marks["loss_above_chosen_low"]),
        *(paired + marks["loss_above_chosen_high"]),
    ]
    edge = 0.04 * (max(reach) - min(reach))
    figure.update_xaxes(range=[min(reach) - edge, max(reach) + edge], col=1)
    figure.update_yaxes(title_text="sets", row=1, col=1)
    figure.update_yaxes(
        range=[len(labels) - 0.5, -0.5], tickvals=list(range(len(labels))), ticktext=labels, **below
    )
    figure.update_yaxes(title_text="source layer", dtick=1, row=1, col=2)
    figure.update_xaxes(title_text="cross-entropy (nats)", row=2, col=1)
    figure.update_xaxes(title_text="mean cross-entropy (nats)", row=1, col=2)
    figure.update_layout(
        title={
            "text": f"Sets of {result.k} source layers kept at layer {result.target}, "
            f"{ROW_NAMES[result.tokens]}{no_op}<br><sup>{result.data}, N = {result.readings.n}, "
            f"teacher trajectory, L0 = {result.l0:.1f}, dropped terms: {result.fill}, seed "
            f"{result.seed}<br>star: chosen by {result.ranked_by}; rank correlation of summed "
            f"score and loss over the sets {result.spearman():.2f}<br>bars: paired 95 % "
            "bootstrap over images of the difference to the chosen set</sup>",
        },
        width=1100,
        height=650,
        bargap=0,
        legend={"orientation": "h", "y": -0.13},
    )
    return finish(figure).update_layout(margin={"t": 140})
