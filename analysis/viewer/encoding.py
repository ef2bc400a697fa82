"""Numbers, activation maps and scripts as the front end reads them."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
from jaxtyping import Float

STEPS = 26
"""Levels of each sign in an activation map: the letters of the alphabet."""


def number(value: float | int, digits: int = 4) -> float | None:
    """Rounded for a file; NaN, which JSON does not know, as null."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def json_text(value: Any) -> str:
    """JSON without spaces; NaN and infinities, which it does not know, are errors."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def script(place: str, value: Any) -> str:
    """A script that assigns a value to a place of `EXPLORER`, such as "layers[7]"."""
    return f"EXPLORER.{place} = {json_text(value)};\n"


def script_value(text: str) -> Any:
    """The value that a script assigns."""
    return json.loads(re.sub(r"^[^=]+= |;\n$", "", text))


def map_text(values: Float[np.ndarray, "down across"], scale: float) -> str:
    """An activation map as text: a letter a patch, and a number for a run of silent patches.

    A to Z are the steps of positive values, Z that of `scale`; a to z those of negative ones. A
    patch that is active has a letter, however weak: what fires is seen to fire.
    """
    flat = values.ravel()
    steps = np.zeros(flat.shape, int)
    if scale:
        steps = np.rint(flat / scale * STEPS).astype(int)
        steps = np.where(steps == 0, np.sign(flat).astype(int), steps)
    parts: list[str] = []
    silent = 0
    for step in steps.tolist():
        if not step:
            silent += 1
            continue
        if silent:
            parts.append(str(silent))
            silent = 0
        parts.append(chr((64 if step > 0 else 96) + abs(step)))
    return "".join(parts)
