"""Steering curves: changes from the unsteered model by strength, random features' beside."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS
from vit_clt.analysis.reporting.style import (
    FAINT,
    INK,
    SERIES,
    ZERO_LINE,
    accuracy_axis,
    error_bars,
    finish,
)
from vit_clt.analysis.steering.curve_result import UNSTEERED, SteeringCurve
from vit_clt.analysis.steering.versions import STEERED
from vit_clt.analysis.steering.wording import rows_name


def curve_figure(curve: SteeringCurve) -> go.Figure:
    """Changes by class; those of one class, KL, accuracy and loss beside random features'.

    Changes and not values: their intervals are paired, and an effect far smaller than the spread of
    a probability over images still shows.
    """
    named = curve.moved_classes()
    first = named[0]
    steered = "these features" if len(curve.steered.features) > 1 else "this feature"
    panels = [("kl", "KL from the unsteered model", "KL (nats)", 1)]
    if curve.labelled:
        panels += [
            ("top1", "accuracy", "Δ top-1 (points)", 100),
            ("loss", "cross-entropy", "Δ loss (nats)", 1),
        ]
    figure = make_subplots(
        rows=2,
        cols=6,
        specs=[
            [{"colspan": 3}, None, None] * 2,
            [{"colspan": 2}, None] * len(panels) + [None, None] * (3 - len(panels)),
        ],
        subplot_titles=[
            "probability of each class",
            f"“{curve.class_names[first]}”: {steered} and random ones",
            *(title for _, title, _, _ in panels),
        ],
        horizontal_spacing=0.1,
        vertical_spacing=0.17,
    )
    grey = [label for label in range(len(curve.class_names)) if label not in named]
    for rank, label in enumerate([*grey, *named]):
        shown = label in named
        _line(
            figure,
            _rows(curve, STEERED, "probability", label),
            100,
            name=curve.class_names[label] if shown else "other classes",
            colour=SERIES[named.index(label)] if shown else FAINT,
            legend=shown or rank == 0,
            bars=shown,
            row=1,
            col=1,
        )
    of_probability = "Δ probability (points)"
    figure.update_yaxes(title={"text": of_probability}, row=1, col=1)
    compared: list[tuple[str, str, int | None, int, int, int]] = [
        ("probability", of_probability, first, 100, 1, 4)
    ]
    compared += [(m, axis, None, x, 2, 1 + 2 * i) for i, (m, _, axis, x) in enumerate(panels)]
    for at, (measure, axis, of_class, factor, row, col) in enumerate(compared):
        figure.update_yaxes(title={"text": axis}, row=row, col=col)
        for j, control in enumerate(curve.controls):
            rows = _rows(curve, control.name, measure, of_class)
            legend = at == j == 0
            random = LEVELS["random"]
            _line(
                figure,
                rows,
                factor,
                random.label,
                random.colour,
                legend,
                row=row,
                col=col,
                dash=random.dash,
            )
        rows = _rows(curve, STEERED, measure, of_class)
        _line(figure, rows, factor, steered, INK, at == 0, bars=True, row=row, col=col)
        if measure == "top1":
            accuracy_axis(figure, row=row, col=col)
    figure.update_xaxes(
        title={"text": f"strength ({curve.unit})", "font": {"size": 13}, "standoff": 6}
    )
    subtitle = _curve_subtitle(curve, first)
    figure.update_layout(
        title={"text": f"Steering {html.escape(curve.features_text)}<br><sup>{subtitle}</sup>"},
        width=1000,
        height=790,
        legend={"orientation": "h", "y": -0.11, "yanchor": "top"},
    )
    figure.update_annotations(font_size=14)
    # 0.0004 nats, not 400µ; the line at 0 is the unsteered model
    figure.update_yaxes(
        exponentformat="power",
        **ZERO_LINE,
        title={"font": {"size": 13}, "standoff": 4},
    )
    return finish(figure).update_layout(margin={"t": 170, "b": 90})


def _curve_subtitle(curve: SteeringCurve, first: int) -> str:
    before = _rows(curve, UNSTEERED, "probability", first)["value"].iloc[0]
    unsteered = f"“{curve.class_names[first]}” {100 * before:.1f} %"
    if curve.labelled:
        top1, loss = (_rows(curve, UNSTEERED, m, None)["value"].iloc[0] for m in ("top1", "loss"))
        unsteered += f", top-1 {100 * top1:.1f} %, loss {loss:.4f} nats"
    units = ", ".join(f"{value:.3g}" for value in curve.steered.typical)
    rates = ", ".join(f"{100 * rate:.1f}" for rate in curve.steered.rates)
    where = f"{rows_name(curve.tokens)}{', where active' if curve.only_active else ''}"
    # random features are read on a class that was chosen for being moved
    drawn = "; class compared: the one that moves most" if curve.target is None else ""
    how = "clamped to strength × typical activation" if curve.kind == "clamp" else "scaled"
    return (
        f"{curve.data}, N = {curve.n}, readout: {curve.readout}, L0 = {curve.l0:.1f} a row; "
        f"every MLP replaced with error nodes, stream inputs<br>{how} on {where}; typical "
        f"activation (mean of z where active, {curve.n_typical} images): {units}; active on "
        f"{rates} % of rows<br>random: {len(curve.controls)} of the same layer and of about that "
        f"firing rate, seed {curve.seed}; bars: 95 % bootstrap over images of the change from the "
        f"unsteered model, paired<br>unsteered (0): {unsteered}{drawn}"
    )


def _line(
    figure: go.Figure,
    rows: pd.DataFrame,
    factor: int,
    name: str,
    colour: str,
    legend: bool,
    *,
    row: int,
    col: int,
    bars: bool = False,
    dash: str = "solid",
) -> None:
    change, low, high = (rows[f"change{end}"] * factor for end in ("", "_low", "_high"))
    ends: dict[str, Any] = {}
    if bars and low.notna().all():
        ends["error_y"] = error_bars(change, low, high)
    figure.add_trace(
        go.Scatter(
            x=rows["strength"].tolist(),
            y=change.tolist(),
            mode="lines+markers" if bars else "lines",
            name=name,
            legendgroup=name,
            showlegend=legend,
            line={"color": colour, "width": 2 if bars else 1, "dash": dash},
            marker={"size": 6},
            customdata=[
                f"{r['features']}, {r['class'] or r['measure']}, z: {r['raw']}"
                for r in rows.to_dict("records")
            ],
            hovertemplate="%{customdata}<br>strength %{x:g}: %{y:+.4g}<extra></extra>",
            **ends,
        ),
        row=row,
        col=col,
    )


def _rows(curve: SteeringCurve, version: str, measure: str, label: int | None) -> pd.DataFrame:
    f = curve.frame
    rows = f[(f["version"] == version) & (f["measure"] == measure)]
    return rows if label is None else rows[rows["label"] == label]
