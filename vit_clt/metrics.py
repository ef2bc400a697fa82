"""Writes metrics.json: the numbers a command reports, with interval, floor, baseline and context.

    {"context": {...}, "metrics": [{"name", "value", "low", "high", "unit", "n", "floor",
    "baseline"}, ...]}

`floor` and `baseline` are null for a number that has none, and NaN is written as null.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

CONTEXT_KEYS = (
    "command",
    "data",
    "split",
    "tokens",
    "trajectory",
    "l0",
    "fill",
    "seed",
    "versions",
)


@dataclass(frozen=True)
class Metric:
    """One reported number."""

    name: str
    value: float | int | None
    unit: str
    """One of "fraction", "nats", "logits", "seconds", "count", "bytes", "tokens/s" or "raw^2"."""
    n: int
    """Images it was measured on (token rows, for the `last_batch_` numbers of a training run)."""
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    baseline: float | None = None


def metrics_json(metrics: Sequence[Metric], **context: Any) -> str:
    """The text of metrics.json.

    Args:
        metrics: the numbers.
        **context: values of `CONTEXT_KEYS`, null where missing, and any others, as JSON values.
    """
    filled = {key: context.pop(key, None) for key in CONTEXT_KEYS}
    filled["versions"] = versions()
    document = {
        "context": _finite({**filled, **context}),
        "metrics": [_finite(asdict(metric)) for metric in metrics],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    packages = ("vit-clt", "torch", "transformer_lens", "open_clip_torch")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
