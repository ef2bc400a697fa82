"""Linear probes as a figure: accuracy and loss by depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.probing.places import ProbedRows, Stage
from vit_clt.analysis.reporting.levels import LEVELS, Level, add_levels, add_points
from vit_clt.analysis.reporting.style import SERIES, finish

if TYPE_CHECKING:
    from vit_clt.analysis.probing.result import Probes

PLACES = {"cls": "CLS row", "patch": "patches"}
STREAM: dict[Stage, float] = {"resid_pre": 0, "resid_mid": 0.5, "resid_post": 1}
"""How far into its block each point of the residual stream lies."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")


def probe_figure(result: Probes) -> go.Figure:
    """Accuracy and loss along the residual stream, and accuracy of x_l and y_l, by token kind."""
    kinds = result.kinds
    rows = (
        "stream · accuracy (%)",
        "stream · loss (nats)",
        "x_l (solid), y_l (dashed) · accuracy (%)",
    )
    figure = make_subplots(
        rows=3,
        cols=len(kinds),
        subplot_titles=[f"{PLACES[kind]}: {title}" for title in rows for kind in kinds],
        horizontal_spacing=0.08,
        vertical_spacing=0.12,
    )
    for column, kind in enumerate(kinds, start=1):
        add_stream(figure, result, kind, "top1", row=1, col=column, legend=column == 1)
        add_stream(figure, result, kind, "loss", row=2, col=column)
        _add_mlps(figure, result, kind, column)
        figure.update_xaxes(title_text="layer", dtick=1, title_standoff=5, row=3, col=column)
    shown = ", ".join(result.floors)
    figure.update_layout(
        title={
            "text": f"Where can {shown} be read linearly?<br><sup>{result.measured_on()}"
            "<br>stream: before block 0, then after each block's attention (half-way) and MLP; "
            "x_l: what MLP l reads, y_l: what it puts out<br>patches: mean over each half of the "
            "grid, side by side; bars: 95 % bootstrap over images</sup>"
        },
        width=1000,
        height=1080,
        legend={"orientation": "h", "y": -0.06, "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 145})


def add_stream(
    figure: go.Figure,
    result: Probes,
    tokens: ProbedRows,
    measure: str,
    *,
    row: int,
    col: int,
    names: Mapping[str, str] | None = None,
    legend: bool = False,
) -> None:
    """Draw every factor against depth in the residual stream into one panel, with its floors.

    Args:
        figure: made by plotly's `make_subplots`.
        result: the probes.
        tokens: which rows.
        measure: "top1" (drawn in percent) or "loss" (nats).
        row, col: the panel, counted from 1.
        names: what factors are called; by default their own names.
        legend: whether the legend tells of this panel's lines.
    """
    frame = result.to_frame().query("tokens == @tokens and stage in @STREAM")
    frame = frame.assign(depth=frame["layer"] + frame["stage"].map(STREAM)).sort_values("depth")
    factor_100 = 100 if measure == "top1" else 1
    ends = ("low", "high") if measure == "top1" else ("loss_low", "loss_high")
    for i, name in enumerate(result.floors):
        own = frame[frame["factor"] == name]
        add_points(
            figure,
            own["depth"].tolist(),
            tuple(own[column] * factor_100 for column in (measure, *ends)),
            name=(names or {}).get(name, name),
            colour=SERIES[i % len(SERIES)],
            symbol=_SYMBOLS[i % len(_SYMBOLS)],
            hover=f"{name}, depth %{{x}}: %{{y:.4g}}",
            legend=legend,
            legendgroup=name,
            row=row,
            col=col,
        )
    span = [float(frame["depth"].min()), float(frame["depth"].max())]
    floors = _floors(result, measure, names or {})
    levels = {level: height * factor_100 for level, height in floors.items()}
    add_levels(figure, span, levels, legend=legend, row=row, col=col)
    depths = sorted(frame["depth"].unique())
    ends_of_blocks = [d for d in depths if d == int(d)]
    figure.update_xaxes(
        title_text="depth: blocks passed",
        tickvals=ends_of_blocks,
        ticktext=[str(int(d)) for d in ends_of_blocks],
        title_standoff=5,
        row=row,
        col=col,
    )
    if measure == "top1":
        figure.update_yaxes(range=[-3, 105], row=row, col=col)


def _floors(result: Probes, measure: str, names: Mapping[str, str]) -> dict[Level, float]:
    """Heights of the lines that do not depend on depth."""
    loss = measure == "loss"
    found = {
        LEVELS["additive"].named(f"additive floor of {names.get(name, name)}"): float(
            each.additive.loss if loss else each.additive.top1
        )
        for name, each in result.floors.items()
        if each.additive is not None
    }
    levels = [each.chance_loss if loss else each.chance for each in result.floors.values()]
    # of several factors' the one that is hardest to beat
    best = min(levels) if loss else max(levels)
    chance = LEVELS["chance"]
    found[chance.named("best chance") if len(levels) > 1 else chance] = best
    return found


def _add_mlps(figure: go.Figure, result: Probes, tokens: ProbedRows, column: int) -> None:
    frame = result.to_frame().query("tokens == @tokens")
    for i, name in enumerate(result.floors):
        for stage, dash, label in (("x", "solid", "x_l"), ("y", "dash", "y_l")):
            own = frame[(frame["factor"] == name) & (frame["stage"] == stage)]
            add_points(
                figure,
                own["layer"].tolist(),
                tuple(100 * own[end] for end in ("top1", "low", "high")),
                name=name,
                colour=SERIES[i % len(SERIES)],
                dash=dash,
                symbol=_SYMBOLS[i % len(_SYMBOLS)],
                hover=f"{name}, {label} of layer %{{x}}: %{{y:.4g}}",
                row=3,
                col=column,
            )
    figure.update_yaxes(range=[-3, 105], row=3, col=column)
