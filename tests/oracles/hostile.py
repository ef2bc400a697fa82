"""Valid files made hostile, for tests of readers: strategies of hypothesis.

A file is damaged as bytes (bits flipped, cut short, parts put elsewhere), or, where it is JSON or
has a JSON header, as values (hostile ones in the place of others, names left out or unknown).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

EXAMPLES = "VIT_CLT_FUZZ_EXAMPLES"
"""Environment variable: examples of each test; `make fuzz` sets it."""
Damage = Callable[[bytes], bytes]
_RAW = '"@raw@"'
_NUMBERS = ("NaN", "-Infinity", "1e999", "9" * 5000, "-1", "0", "1.5", "1e308", "9" * 30, "-0.0")
_TEXTS = ("", "\0", "../../etc/passwd", "hf-hub:a/b", "local-dir:/", "x" * 5000, "\u202e", "digits")
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, [0] * 100, ["a", 1, None])
_MORE: tuple[Any, ...] = ({"trust_remote_code": True}, 2, 100_000_000_000, 7)
_SYNTAX = (_RAW[1:], "[" * 60 + "]" * 60, '{"a": 1, "a": 2}', '"\\ud800"', "[" * 100_000, "", "}")


def fuzzing(default: int) -> Any:
    """Settings of a test: `default` examples that are always the same, or as many as asked for."""
    asked = os.environ.get(EXAMPLES)
    return settings(
        max_examples=default if asked is None else int(asked),
        derandomize=asked is None,
        deadline=None,
        database=None,
    )


@st.composite
def _flipped(draw: Any) -> Damage:
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=8))

    def damage(content: bytes) -> bytes:
        damaged = bytearray(content)
        for share, bit in places if content else ():
            damaged[min(len(content) - 1, int(share * len(content)))] ^= 1 << bit
        return bytes(damaged)

    return damage


@st.composite
def _moved(draw: Any) -> Damage:
    start, end, to = (draw(st.floats(0, 1)) for _ in range(3))
    more = draw(st.binary(max_size=20))

    def damage(content: bytes) -> bytes:
        a, b, c = (int(share * len(content)) for share in (start, end, to))
        return content[:c] + more + content[min(a, b) : max(a, b)]

    return damage


@st.composite
def _revalued(draw: Any) -> Damage:
    """JSON with a value replaced at a place that is drawn; of safetensors, the header."""
    steps = draw(st.lists(st.floats(0, 0.999), min_size=1, max_size=6))
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
    raw = draw(st.sampled_from(_NUMBERS + _SYNTAX))
    kind = draw(st.sampled_from(["raw", "plain"]))
    plain = draw(st.sampled_from(_OTHERS + _TEXTS + _MORE) | st.integers() | st.text(max_size=9))
    value = _RAW[1:-1] if kind == "raw" else plain

    def damage(content: bytes) -> bytes:
        size = None
        if content[8:9] == b"{":
            (size,) = struct.unpack("<Q", content[:8])
        text = content if size is None else content[8 : 8 + size]
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return content[1:]
        root = {"": document}
        holder: Any = root
        key: Any = ""
        for step in steps:
            inside = holder[key]
            if not isinstance(inside, dict | list) or not inside:
                break
            keys = list(inside) if isinstance(inside, dict) else range(len(inside))
            holder, key = inside, keys[int(step * len(keys))]
        if how == "replace":
            holder[key] = value
        elif how == "remove" or isinstance(holder, list):
            del holder[key]
        elif how == "rename":
            holder[str(value)[:100]] = holder.pop(key)
        else:
            holder[f"{key} more"] = value
        out = json.dumps(root.get("")).replace(_RAW, raw).encode()
        return out if size is None else struct.pack("<Q", len(out)) + out + content[8 + size :]

    return damage


damages: st.SearchStrategy[Damage] = st.one_of(
    _flipped(), st.floats(0, 1).map(lambda s: lambda c: c[: int(s * len(c))]), _moved(), _revalued()
)
"""Ways to damage the contents of a file."""


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Make a folder hold these files and no others."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
