"""Steering in words: rows, edits, and changes with their intervals."""

from __future__ import annotations

from math import floor, isnan, log10
from typing import Any

from vit_clt.choices import EditKind
from vit_clt.hooks import Rows

COMPARED = {
    "error_node": True,
    "floor": "mean of random features of the same layer and of about the same firing rate",
    "baseline": "the unsteered model",
}
"""What the numbers of every steering study are compared with, for metrics.json."""
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


def edits_text(kind: EditKind, only_active: bool = False) -> str:
    """A sentence on what an edit of this kind does to the codes."""
    return _ONLY_ACTIVE if kind == "clamp" and only_active else _EDITS[kind]


def rows_name(tokens: Rows) -> str:
    """The token rows in words."""
    from vit_clt.analysis.reporting.style import ROW_NAMES

    return ROW_NAMES[tokens] if isinstance(tokens, str) else f"rows {', '.join(map(str, tokens))}"


def change_text(row: Any, name: str, factor: int, digits: int) -> str:
    """The change in column `name` of a table row, times `factor`, with its interval.

    A single image has no interval. The text has `digits` decimals, or more where the largest end
    would otherwise show fewer than two significant digits: 0.00 (0.00 to 0.00) says nothing.
    """
    ends = [factor * row[name + end] for end in ("", "_low", "_high")]
    size = max(abs(end) for end in ends if not isnan(end))
    if size:
        digits = max(digits, min(7, 1 - floor(log10(size))))
    # no minus before a zero
    value, low, high = (f"{round(end, digits) + 0.0:+.{digits}f}" for end in ends)
    return value if isnan(ends[1]) else f"{value} ({low} to {high})"
