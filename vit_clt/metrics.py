"""metrics.json: every number a command reports, with its interval, floor, baseline and context.

    {"context": {...}, "metrics": [{"name", "value", "low", "high", "unit", "n", "floor",
    "baseline"}, ...]}

`floor` and `baseline` are null where a number has none; NaN is written as null.
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
    """"fraction", "nats", "logits", "seconds", "count", "bytes", "tokens/s" or "raw^2"."""
    n: int
    """Images it was measured on (token rows, for `last_batch_` numbers of a training run)."""
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    baseline: float | None = None


def metrics_json(metrics: Sequence[Metric], **context: Any) -> str:
    """The file's text. `context` names the command, data, tokens, trajectory, L0, fill and seed."""
    filled = {key: context.pop(key, None) for key in CONTEXT_KEYS}
    filled["versions"] = versions()
    document = {
        "context": _finite({**filled, **context}),
        "metrics": [_finite(asdict(metric)) for metric in metrics],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("vit-clt", "torch", "transformer_lens", "open_clip_torch")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
