"""What a study was measured on as plain text, for the list at the end of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS = {
    "n": "N",
    "n_by_part": "N by part",
    "n_images": "images",
    "n_train": "training images",
    "l0": "L0",
    "clt": "CLT",
    "clts": "CLTs",
    "cls": "CLS",
    "weights_sha256": "SHA-256 of the weights",
}


def facts_text(context: Mapping[str, Any]) -> dict[str, str]:
    """The facts that are known, names in words and values as text."""
    return {
        _WORDS.get(name, name.replace("_", " ")): _text(value)
        for name, value in context.items()
        if value is not None
    }


def _text(value: Any) -> str:
    """A value without Python's brackets and quotes.

    Real numbers have one decimal; below 1 they have three significant digits, since a loss or an
    accuracy would be lost otherwise.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1 else f"{value:.3g}"
    if isinstance(value, Mapping):
        nested = any(isinstance(inner, Mapping) for inner in value.values())
        # names of CLTs stay as they are: only known names have words
        pairs = [(_WORDS.get(str(name), str(name)), _text(v)) for name, v in value.items()]
        if nested:
            return "; ".join(f"{name}: {text}" for name, text in pairs) or "none"
        return ", ".join(f"{name} {text}" for name, text in pairs) or "none"
    if isinstance(value, list | tuple):
        texts = [_text(each) for each in value]
        between = "; " if any(", " in text for text in texts) else ", "
        return between.join(texts) or "none"
    return "none" if value is None else str(value)
