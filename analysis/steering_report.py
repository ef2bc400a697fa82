"""Steering studies as tables to read, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from vit_clt.analysis.report import Section, render_report
from vit_clt.analysis.steered_features import STEERED
from vit_clt.analysis.steering import UNSTEERED, SteeringCurve
from vit_clt.analysis.steering_figure import moved_classes
from vit_clt.analysis.steering_search import SteeringSearch

READING = (
    "The CLT stands in for every MLP with its reconstruction error added back, so that the "
    "unsteered model is the model itself and each number is what the edit alone does, everything "
    "downstream live. A strength far from 1 is one that the model never meets: large strengths "
    "break it, and random features break it too. What is specific to a feature is what it does "
    "beyond them."
)


def curve_table(curve: SteeringCurve, target: str | int | None = None) -> pd.DataFrame:
    """One row a strength, as text: probabilities (%), KL, accuracy and loss, and the mean of the
    random features' for the first class and KL. Intervals are those of the change from the
    unsteered model, paired over images; the spread of the values themselves is in the frame."""
    named = moved_classes(curve, target, 3)
    rows = []
    for strength in [None, *curve.strengths]:
        version = UNSTEERED if strength is None else STEERED
        row = {"strength": "unsteered" if strength is None else f"{strength:g}"}
        for label in named:
            found = _at(curve, version, strength, "probability", label)
            row[f"{curve.class_names[label]} %"] = _with_change(found, 100, ".1f")
        row["random % "] = _random(curve, strength, "probability", named[0], 100, ".1f")
        row["KL (nats)"] = f"{_at(curve, version, strength, 'kl', None)['value']:.4f}"
        row["random KL (nats)"] = _random(curve, strength, "kl", None, 1, ".4f")
        if curve.labelled:
            top1, loss = (_at(curve, version, strength, m, None) for m in ("top1", "loss"))
            row["top-1 %"] = _with_change(top1, 100, ".1f")
            row["loss (nats)"] = _with_change(loss, 1, ".4f")
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


def _at(
    curve: SteeringCurve, version: str, strength: float | None, measure: str, label: int | None
) -> pd.Series:
    f = curve.frame
    rows = f[(f["version"] == version) & (f["measure"] == measure)]
    if label is not None:
        rows = rows[rows["label"] == label]
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


def _with_change(found: pd.Series, factor: int, form: str) -> str:
    ends = ("value", "change", "change_low", "change_high")
    value, change, low, high = (factor * found[end] for end in ends)
    text = f"{value:{form}}"
    if isnan(low) or change == low == high == 0:
        return text
    return f"{text}, {change:+{form}} ({low:+{form}} to {high:+{form}})"


def _change(row: dict[Any, Any], measure: str, factor: int, form: str) -> str:
    value, low, high = (factor * row[measure + end] for end in ("", "_low", "_high"))
    return f"{value:+{form}} ({low:+{form}} to {high:+{form}})"
