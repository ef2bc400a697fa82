"""Texts that features may be named with: the list that comes with this package, and a user's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from vit_clt.errors import InputError
from vit_clt.inputs import read_text

MAX_TEXTS = 100_000
MAX_TEXT = 200
"""Characters of one."""


def common_words() -> list[str]:
    """Common English nouns and adjectives; source and licence stand in the list's own head."""
    return _lines((files("vit_clt.data") / "common_words.txt").read_text("utf-8"))


def read_words(path: Path | str) -> list[str]:
    """The texts of a file: one a line, in UTF-8; empty lines and those that begin with # are none.

    Raises:
        InputError: the file cannot be read, or holds fewer than two texts or too many.
    """
    texts = _lines(read_text(path))
    if not 2 <= len(set(texts)) <= MAX_TEXTS:
        raise InputError(
            "vocabulary",
            f"is {path}, which holds {len(set(texts)) or 'no'} texts; expected 2 to "
            f"{MAX_TEXTS:,}, one a line.",
        )
    return texts


def _lines(text: str) -> list[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
