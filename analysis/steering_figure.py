"""Steering curves and searches as figures, as tables to read, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, ROW_NAMES, finish
from vit_clt.analysis.report import Section, render_report
from vit_clt.analysis.steering import STEERED, UNSTEERED, SteeringCurve
from vit_clt.analysis.steering_search import SCALES, SteeringSearch, class_number

if TYPE_CHECKING:
    from vit_clt.hooks import Rows

READING = (
    "The CLT stands in for every MLP with its reconstruction error added back, so that the "
    "unsteered model is the model itself and each number is what the edit alone does, everything "
    "downstream live. A strength far from 1 is one that the model never meets: large strengths "
    "break it, and random features break it too. What is specific to a feature is what it does "
    "beyond them."
)
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
_FAINT = "#bbbbbb"
_SCALE_STYLE = {
    SCALES[0]: ("suppressed (× 0)", BLUE, -0.2),
    SCALES[1]: ("doubled (× 2)", ORANGE, 0.2),
}


def moved_classes(curve: SteeringCurve, target: str | int | None = None, n: int = 4) -> list[int]:
    """The classes whose mean probability moves most over the strengths, `target` first if given.

    Raises:
        InputError: no such class.
    """
    f = curve.frame
    rows = f[(f["version"] == STEERED) & (f["measure"] == "probability")]
    change = rows.assign(size=rows["change"].abs()).groupby("label")["size"].max()
    ranked = [int(label) for label in change.sort_values(ascending=False, kind="stable").index]
    if target is not None:
        first = class_number(curve.class_names, target)
        ranked = [first, *(label for label in ranked if label != first)]
    return ranked[:n]


def curve_figure(curve: SteeringCurve, target: str | int | None = None) -> go.Figure:
    """Probabilities by class; one class, KL, accuracy and loss beside random features."""
    named = moved_classes(curve, target)
    first = named[0]
    steered = "these features" if len(curve.steered.features) > 1 else "this feature"
    panels = [("kl", "KL from the unsteered model (nats)", 1)]
    if curve.labelled:
        panels += [("top1", "zero-shot accuracy (%)", 100), ("loss", "cross-entropy (nats)", 1)]
    figure = make_subplots(
        rows=2,
        cols=6,
        specs=[
            [{"colspan": 3}, None, None] * 2,
            [{"colspan": 2}, None] * len(panels) + [None, None] * (3 - len(panels)),
        ],
        subplot_titles=[
            "mean probability of each class (%)",
            f"“{curve.class_names[first]}”: {steered} and random ones (%)",
            *(title for _, title, _ in panels),
        ],
        horizontal_spacing=0.09,
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
            colour=_COLOURS[named.index(label)] if shown else _FAINT,
            legend=shown or rank == 0,
            bars=shown,
            row=1,
            col=1,
        )
    compared: list[tuple[str, int | None, int, int, int]] = [("probability", first, 100, 1, 4)]
    compared += [(m, None, factor, 2, 1 + 2 * i) for i, (m, _, factor) in enumerate(panels)]
    for at, (measure, of_class, factor, row, col) in enumerate(compared):
        for j, control in enumerate(curve.controls):
            rows = _rows(curve, control.name, measure, of_class)
            legend = at == j == 0
            _line(
                figure, rows, factor, "random features", GREY, legend, row=row, col=col, thin=True
            )
        rows = _rows(curve, STEERED, measure, of_class)
        _line(figure, rows, factor, steered, INK, at == 0, bars=True, row=row, col=col)
        if measure != "kl":
            before = _rows(curve, UNSTEERED, measure, of_class)["value"].iloc[0] * factor
            figure.add_trace(
                go.Scatter(
                    x=[curve.strengths[0], curve.strengths[-1]],
                    y=[before, before],
                    mode="lines",
                    name="unsteered",
                    legendgroup="unsteered",
                    showlegend=at == 0,
                    line={"color": INK, "dash": "dot", "width": 1.5},
                    hovertemplate="unsteered: %{y:.4g}<extra></extra>",
                ),
                row=row,
                col=col,
            )
    unit = "× typical activation" if curve.kind == "clamp" else "factor on z"
    figure.update_xaxes(title={"text": f"strength ({unit})", "font": {"size": 13}, "standoff": 6})
    figure.update_layout(
        title={"text": f"Steering {curve.steered.text()}<br><sup>{_curve_subtitle(curve)}</sup>"},
        width=1000,
        height=760,
        legend={"orientation": "h", "y": -0.11, "yanchor": "top"},
    )
    figure.update_annotations(font_size=14)
    return finish(figure).update_layout(margin={"t": 150, "b": 90})


def search_figure(search: SteeringSearch) -> go.Figure:
    """Measured changes with intervals; predictions and random features beside them."""
    panels = [
        ("contrast", "logit minus the others' mean", 1),
        ("probability", "probability (points)", 100),
    ]
    if "loss" in search.measures:
        panels.append(("loss", "cross-entropy (nats)", 1))
    figure = make_subplots(
        rows=1,
        cols=len(panels),
        subplot_titles=[f"change of {title}" for _, title, _ in panels],
        horizontal_spacing=0.06,
        shared_yaxes=True,
    )
    frame = search.frame
    for column, (measure, _, factor) in enumerate(panels, start=1):
        first = column == 1
        for scale in SCALES:
            name, colour, shift = _SCALE_STYLE[scale]
            at_scale = frame[frame["scale"] == scale]
            found = at_scale[at_scale["role"] == "found"]
            random = at_scale[at_scale["role"] == "random"]
            value, low, high = (found[measure + end] * factor for end in ("", "_low", "_high"))
            figure.add_trace(
                go.Bar(
                    x=value.tolist(),
                    y=(found["candidate"] + shift).tolist(),
                    width=0.36,
                    orientation="h",
                    error_x={
                        "array": (high - value).tolist(),
                        "arrayminus": (value - low).tolist(),
                        "thickness": 1.2,
                        "width": 3,
                    },
                    name=f"{name}, measured",
                    legendgroup=name,
                    showlegend=first,
                    marker={"color": colour, "opacity": 0.75},
                    customdata=[f"{s}:{i}" for s, i in search.found],
                    hovertemplate=f"%{{customdata}} {name}: %{{x:.4g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            figure.add_trace(
                go.Scatter(
                    x=(random[measure] * factor).tolist(),
                    y=(random["candidate"] + shift).tolist(),
                    mode="markers",
                    name="random features, measured",
                    legendgroup="random",
                    showlegend=first and scale == SCALES[0],
                    marker={"symbol": "x-thin", "size": 8, "line": {"color": INK, "width": 1.5}},
                    customdata=[
                        f"{s}:{i}" for s, i in zip(random["layer"], random["feature"], strict=True)
                    ],
                    hovertemplate=f"random %{{customdata}} {name}: %{{x:.4g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            if measure == "contrast":
                figure.add_trace(
                    go.Scatter(
                        x=found["predicted"].tolist(),
                        y=(found["candidate"] + shift).tolist(),
                        mode="markers",
                        name="predicted: direct effect on the other half",
                        legendgroup="predicted",
                        showlegend=scale == SCALES[0],
                        marker={
                            "symbol": "diamond-open",
                            "size": 9,
                            "color": INK,
                            "line": {"width": 1.5},
                        },
                        hovertemplate="predicted: %{x:.4g}<extra></extra>",
                    ),
                    row=1,
                    col=column,
                )
    n = len(search.found)
    figure.update_yaxes(
        tickvals=list(range(n)),
        ticktext=[f"{s}:{i}" for s, i in search.found],
        range=[n - 0.4, -0.6],
        showgrid=False,
    )
    figure.update_yaxes(
        title={"text": "layer:feature, largest direct effect first", "font": {"size": 13}}, col=1
    )
    figure.update_xaxes(zeroline=True, zerolinecolor=INK, zerolinewidth=1)
    figure.update_annotations(font_size=14)
    title = f"Which features move “{search.target}”?"
    figure.update_layout(
        title={"text": f"{title}<br><sup>{_search_subtitle(search)}</sup>"},
        barmode="overlay",
        width=1000,
        height=270 + 48 * n,
        legend={"orientation": "h", "y": -70 / (60 + 48 * n), "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 150, "b": 90, "l": 80})


def curve_table(curve: SteeringCurve, target: str | int | None = None) -> pd.DataFrame:
    """One row a strength, as text: probabilities (%) with intervals, KL, accuracy and loss, and
    the mean of the random features' for the first class and KL."""
    named = moved_classes(curve, target, 3)
    rows = []
    for strength in [None, *curve.strengths]:
        version = UNSTEERED if strength is None else STEERED
        row = {"strength": "unsteered" if strength is None else f"{strength:g}"}
        for label in named:
            found = _at(curve, version, strength, "probability", label)
            row[f"{curve.class_names[label]} %"] = _with_ends(found, 100, ".1f")
        row["random % "] = _random(curve, strength, "probability", named[0], 100, ".1f")
        row["KL"] = f"{_at(curve, version, strength, 'kl', None)['value']:.4f}"
        row["random KL"] = _random(curve, strength, "kl", None, 1, ".4f")
        if curve.labelled:
            top1, loss = (_at(curve, version, strength, m, None)["value"] for m in ("top1", "loss"))
            row["top-1 % / loss"] = f"{100 * top1:.1f} / {loss:.4f}"
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.rename(columns={"random % ": f"random: {curve.class_names[named[0]]} %"})


def search_table(search: SteeringSearch) -> pd.DataFrame:
    """One row a feature found, as text: predicted and measured contrast, probability, loss."""
    frame, rows = search.frame, []
    for r in frame[frame["role"] == "found"].to_dict("records"):
        row = {
            "feature": f"{r['layer']}:{r['feature']}",
            "active %": f"{100 * r['rate']:.1f}",
            "scale": f"{r['scale']:g}",
            "predicted": f"{r['predicted']:+.3f}",
            "Δ logit contrast": _change(r, "contrast", 1, ".3f"),
            "random": f"{search.random_mean(r['candidate'], r['scale'], 'contrast'):+.3f}",
            "Δ probability (points)": _change(r, "probability", 100, ".2f"),
        }
        if "loss" in search.measures:
            row["Δ top-1 (points)"] = f"{100 * r['top1']:+.2f}"
            row["Δ loss"] = _change(r, "loss", 1, ".4f")
        rows.append(row)
    return pd.DataFrame(rows)


def steering_report(
    figure: go.Figure, table: pd.DataFrame, title: str, facts: dict[str, str], notes: Sequence[str]
) -> str:
    """The whole page as a string."""
    sections = [
        Section("How to read it", [READING, *notes], facts=facts),
        Section("Figure", figures=[figure]),
        Section("Numbers", tables=[table]),
    ]
    return render_report(title, "Features of a CLT, turned up and down in the model.", sections)


def agreement_text(search: SteeringSearch) -> str:
    """How well prediction and measurement agree, in a sentence."""
    a = search.agreement
    if a is None or isnan(a.value):
        return "Too few features to say whether prediction and measurement agree."
    return (
        f"Spearman of predicted and measured change of the logit contrast, suppressed, over "
        f"{len(search.found)} features: {a.value:.2f} ({a.low:.2f} to {a.high:.2f} over images of "
        f"the measuring half, predictions held); predictions permuted: {a.floor_low:.2f} to "
        f"{a.floor_high:.2f}."
    )


def rows_name(tokens: Rows) -> str:
    """The rows in words."""
    return ROW_NAMES[tokens] if isinstance(tokens, str) else f"rows {', '.join(map(str, tokens))}"


def _curve_subtitle(curve: SteeringCurve) -> str:
    units = ", ".join(f"{value:.3g}" for value in curve.steered.typical)
    rates = ", ".join(f"{100 * rate:.1f}" for rate in curve.steered.rates)
    where = f"{rows_name(curve.tokens)}{', where active' if curve.only_active else ''}"
    how = "clamped to strength × typical activation" if curve.kind == "clamp" else "scaled"
    return (
        f"{curve.data}, N = {curve.n}, templates: {curve.templates}, L0 = {curve.l0:.1f} a row; "
        f"every MLP replaced with error nodes, stream inputs<br>{how} on {where}; typical "
        f"activation (mean of z where active, {curve.n_typical} images): {units}; active on "
        f"{rates} % of rows<br>random: {len(curve.controls)} of the same layer and of about that "
        f"firing rate, seed {curve.seed}; bars: 95 % bootstrap over images"
    )


def _search_subtitle(search: SteeringSearch) -> str:
    before = search.baseline
    loss = ""
    if "loss" in before:
        loss = f", top-1 {100 * before['top1']:.1f} %, loss {before['loss']:.4f} nats"
    return (
        f"{search.data}, {rows_name(search.tokens)}, L0 = {search.l0:.1f} a row, templates: "
        f"{search.templates}; every MLP replaced with error nodes, stream inputs<br>ranked on "
        f"{search.n_ranked} images by |direct effect| among {search.n_searched:,} features; "
        f"measured on the other N = {search.n}; bars: 95 % bootstrap over images, paired<br>"
        f"unsteered: probability {100 * before['probability']:.1f} %{loss}; random: same layer, "
        f"about the same firing rate, seed {search.seed}"
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
    thin: bool = False,
) -> None:
    value = rows["value"] * factor
    ends: dict[str, Any] = {}
    if bars and rows["low"].notna().all():
        ends["error_y"] = {
            "array": (rows["high"] * factor - value).tolist(),
            "arrayminus": (value - rows["low"] * factor).tolist(),
            "thickness": 1,
        }
    if thin:
        style: dict[str, Any] = {"line": {"color": colour, "width": 1, "dash": "dash"}}
    else:
        style = {"line": {"color": colour, "width": 2 if bars else 1}}
    figure.add_trace(
        go.Scatter(
            x=rows["strength"].tolist(),
            y=value.tolist(),
            mode="lines+markers" if bars else "lines",
            name=name,
            legendgroup=name,
            showlegend=legend,
            marker={"size": 6},
            customdata=[
                f"{r['features']}, {r['class'] or r['measure']}, z: {r['raw']}"
                for r in rows.to_dict("records")
            ],
            hovertemplate="%{customdata}<br>strength %{x:g}: %{y:.4g}<extra></extra>",
            **style,
            **ends,
        ),
        row=row,
        col=col,
    )


def _rows(curve: SteeringCurve, version: str, measure: str, label: int | None) -> pd.DataFrame:
    f = curve.frame
    rows = f[(f["version"] == version) & (f["measure"] == measure)]
    return rows if label is None else rows[rows["label"] == label]


def _at(
    curve: SteeringCurve, version: str, strength: float | None, measure: str, label: int | None
) -> pd.Series:
    rows = _rows(curve, version, measure, label)
    return (rows if strength is None else rows[rows["strength"] == strength]).iloc[0]


def _random(
    curve: SteeringCurve,
    strength: float | None,
    measure: str,
    label: int | None,
    factor: int,
    form: str,
) -> str:
    if strength is None:
        return ""
    found = [_at(curve, c.name, strength, measure, label)["value"] for c in curve.controls]
    return f"{factor * sum(found) / len(found):{form}}"


def _with_ends(found: pd.Series, factor: int, form: str) -> str:
    value, low, high = (factor * found[end] for end in ("value", "low", "high"))
    text = f"{value:{form}}"
    return text if isnan(low) else f"{text} ({low:{form}} to {high:{form}})"


def _change(row: dict[Any, Any], measure: str, factor: int, form: str) -> str:
    value, low, high = (factor * row[measure + end] for end in ("", "_low", "_high"))
    return f"{value:+{form}} ({low:+{form}} to {high:+{form}})"
