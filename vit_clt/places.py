"""Whether a text that may name a repository of the Hub or a place on the disk names the latter.

A path that is missing must not be asked of the Hub, which takes long and cannot have it.
"""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_OUTPUTS = "out"
"""The folder that every example of this package writes to."""
_SUFFIXES = {
    *(".json", ".yaml", ".txt", ".csv", ".parquet", ".zip", ".tar", ".gz"),
    *(".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz"),
}


def is_path(text: str) -> bool:
    """Whether a text names a place on the disk, which may be missing, and no repository of the Hub.

    It does if something is there; if it has not the form NAME or OWNER/NAME (it begins with ".",
    "/" or "~", or has more than one slash); if it ends as a file does; or if it begins with "out/"
    or with a folder that exists.
    """
    first, slash, _ = text.partition("/")
    return (
        _HUB_ID.fullmatch(text) is None
        or Path(text).exists()
        or Path(text).suffix.lower() in _SUFFIXES
        or (bool(slash) and (first == _OUTPUTS or Path(first).is_dir()))
    )


def is_hub_id(text: str) -> bool:
    """Whether a text has the form OWNER/NAME of a repository of the Hub, and is no path."""
    return "/" in text and not is_path(text)
