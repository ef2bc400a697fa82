"""Steering studies as tables to read, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isnan, log10
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.steering.curve import UNSTEERED, SteeringCurve
from vit_clt.analysis.steering.curve_figure import moved_classes
from vit_clt.analysis.steering.search import SteeringSearch
from vit_clt.analysis.steering.versions import STEERED
from vit_clt.choices import EditKind

READING = (
    "The CLT stands in for every MLP with its reconstruction error added back, so that the "
    "unsteered model is the model itself and each number is what the edit alone does, everything "
    "downstream live. Large strengths break the model, and random features break it too. What is "
    "specific to a feature is what it does beyond them: its number minus the mean of the random "
    "features beside it, paired over images (which features were drawn is held)."
)
_EDITS: dict[EditKind, str] = {
    "clamp": "A clamped feature takes the value on every row named, active or not: strength 1 is "
    "not the model as it is, and rows on which the feature is silent meet what they never do.",
    "scale": "A scaled feature stays silent where it is silent; strength 1 is the model as it is, "
    "and a strength far from 1 is one that the model never meets.",
}
_ONLY_ACTIVE = (
    "A feature clamped where it is active takes the value there, its typical one at strength 1; "
    "other rows stay as they are."
)
MIXED_ROWS = (
    "Over all rows a typical activation mixes the CLS row with the patches, on which a feature may "
    "be far weaker: multiples of it are then small for CLS. In late layers steer CLS alone "
    "(--tokens cls): where the class token is pooled, the last layer's patches move nothing."
)


def curve_table(curve: SteeringCurve, target: str | int | None = None) -> pd.DataFrame:
    """One row a strength, as text: probabilities (%), KL, accuracy and loss with their change from
    the unsteered model, and of the first class, KL and loss what lies beyond the mean of the random
    features (points, nats). Intervals are paired over images; the spread of the values themselves
    is in the frame."""
    named = moved_classes(curve, target, 3)
    rows = []
    for strength in [None, *curve.strengths]:
        version = UNSTEERED if strength is None else STEERED
        row = {"strength": "unsteered" if strength is None else f"{strength:g}"}
        for label in named:
            found = _at(curve, version, strength, "probability", label)
            name = f"{curve.class_names[label]} %"
            row[name] = _with_change(found, 100, 2)
            if label == named[0]:
                row[f"{name}, beyond random (points)"] = _beyond(found, 100, 2)
        kl = _at(curve, version, strength, "kl", None)
        row["KL (nats)"] = f"{kl['value']:.4f}"
        row["KL beyond random"] = _beyond(kl, 1, 4)
        if curve.labelled:
            top1, loss = (_at(curve, version, strength, m, None) for m in ("top1", "loss"))
            row["top-1 %"] = _with_change(top1, 100, 2)
            row["loss (nats)"] = _with_change(loss, 1, 4)
            row["loss beyond random"] = _beyond(loss, 1, 4)
        rows.append(row)
    return pd.DataFrame(rows)


def search_table(search: SteeringSearch) -> pd.DataFrame:
    """One row a feature found, as text: how often it fires (rows steered, images, CLS rows), then
    predicted and measured contrast, what of it lies beyond the random features, probability, loss.

    A feature that is on for every CLS row fires on few of all rows and yet detects nothing.
    """
    frame, rows = search.frame, []
    for r in frame[frame["role"] == "found"].to_dict("records"):
        row = {
            "feature": f"{r['layer']}:{r['feature']}",
            "rows %": f"{100 * r['rate']:.1f}",
            "images %": f"{100 * r['image_rate']:.1f}",
            "CLS %": "" if isnan(r["cls_rate"]) else f"{100 * r['cls_rate']:.1f}",
            "scale": f"{r['scale']:g}",
            "predicted": f"{r['predicted']:+.3f}",
            "Δ logit contrast": _change(r, "contrast", 1, 3),
            "beyond random": _change(r, "contrast_beyond", 1, 3),
            "Δ probability (points)": _change(r, "probability", 100, 2),
        }
        if "loss" in search.measures:
            row["Δ top-1 (points)"] = f"{100 * r['top1']:+.2f}"
            row["Δ loss"] = _change(r, "loss", 1, 4)
        rows.append(row)
    return pd.DataFrame(rows)


def agreement_text(search: SteeringSearch) -> str:
    """How well prediction and measurement agree, in a sentence."""
    a = search.agreement
    if a is None or isnan(a.value):
        return "Too few features to say whether prediction and measurement agree."
    return (
        f"Spearman of predicted and measured change of the logit contrast, suppressed, over "
        f"{len(search.found)} features: {a.value:.2f} ({a.value.low:.2f} to "
        f"{a.value.high:.2f} over images of the measuring half, predictions held); predictions "
        f"permuted: {a.floor.low:.2f} to {a.floor.high:.2f}. Slope of measured on "
        f"predicted: {search.slope.text('.2f')}."
    )


def edits_text(kind: EditKind, only_active: bool = False) -> str:
    """What an edit of this kind does to the codes, in a sentence."""
    return _ONLY_ACTIVE if kind == "clamp" and only_active else _EDITS[kind]


def steering_report(
    figure: go.Figure, table: pd.DataFrame, title: str, facts: dict[str, str], notes: Sequence[str]
) -> str:
    """The whole page as a string; `notes` are paragraphs of this study alone."""
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


def _with_change(found: pd.Series, factor: int, digits: int) -> str:
    text = f"{factor * found['value']:.{digits}f}"
    # nothing changed on any image; a single one has no interval
    ends = (found[end] for end in ("change", "change_low", "change_high"))
    if all(end == 0 or isnan(end) for end in ends):
        return text
    return f"{text}, {_change(found, 'change', factor, digits)}"


def _beyond(found: pd.Series, factor: int, digits: int) -> str:
    return "" if isnan(found["beyond"]) else _change(found, "beyond", factor, digits)


def _change(row: Any, name: str, factor: int, digits: int) -> str:
    """With its interval, which a single image does not have; `digits` decimals, more where the
    largest end would have fewer than two digits that count: 0.00 (0.00 to 0.00) says nothing."""
    ends = [factor * row[name + end] for end in ("", "_low", "_high")]
    size = max(abs(end) for end in ends if not isnan(end))
    if size:
        digits = max(digits, min(7, 1 - floor(log10(size))))
    # no minus before a zero
    value, low, high = (f"{round(end, digits) + 0.0:+.{digits}f}" for end in ends)
    return value if isnan(ends[1]) else f"{value} ({low} to {high})"
