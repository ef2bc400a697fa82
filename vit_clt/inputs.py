"""Reads files that others made: limits, and one sentence for whatever is wrong with them.

Nothing in a file is executed. A file is read only if it is a regular one and not too large, text is
UTF-8, and values are those of JSON: finite numbers of limited length, nested to a limited depth.
`reading` is the one place where the errors of libraries become an `InputError`.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vit_clt.errors import InputError, Stopped

MAX_BYTES = 64_000_000
"""Most bytes of a text file, unless its reader says otherwise."""
MAX_DEPTH = 50
"""Most lists and objects inside one another."""
MAX_DIGITS = 100
"""Most digits of a number: with more, converting it takes long or fails."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# whether a text may hold a number or a character that takes a second look; strings match as well
_UNUSUAL = re.compile(rf"\d{{{MAX_DIGITS}}}|\d[eE]\+?\d\d\d|\\u[dD][89a-fA-F]")

_HOME = re.compile(r"^((?:[\w.-]+:)*)~(?=/|$)")


@contextmanager
def reading(
    subject: Path | str, expected: str, *, problem: str = "cannot be read", field: str | None = None
) -> Iterator[None]:
    """A context in which one input is read: every error of a library becomes one `InputError`.

    The sentence is "{subject} {problem}: {what was found}; expected {expected}.", or "{field} is
    {subject}, which {problem}: ..." if an argument is its subject. An `InputError` passes.
    A context should hold what reads a file and what takes its contents apart, and nothing else.

    Args:
        subject: the path of the file, or other words for what is read.
        expected: what should have been there, such as "a JSON object".
        problem: the verb of the sentence.
        field: the name of the argument that names the file.

    Raises:
        InputError: anything was raised in the context, a lack of memory included.
    """
    try:
        yield
    except (InputError, Stopped):
        raise
    except BaseException as error:
        # a panic in a library written in Rust derives from BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = f"{problem}: {reason(error)}; expected {expected}."
        if field is None:
            raise InputError(f"{subject} {text}") from error
        raise InputError(field, f"is {subject}, which {text}") from error


def reason(error: BaseException) -> str:
    """What an error says, as part of a sentence: one short line without a full stop."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror
    said = re.sub(r"\x1b\[[0-9;]*m", "", said)  # colours
    return " ".join(said.split())[:150].rstrip(". ") or type(error).__name__


def expanded(place: str) -> str:
    """A path, with or without forms before it ("imagefolder:~/images"), with ~ as the home folder.

    A shell expands a ~ at the start of a word alone.
    """
    return _HOME.sub(lambda found: f"{found[1]}{Path.home()}", place)


def file_size(path: Path | str) -> int:
    """Bytes of a file that is a regular one, so that opening it neither waits nor never ends.

    Raises:
        InputError: nothing is there, or a folder, a device, a pipe or a socket.
    """
    with reading(path, "a file"):
        found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise InputError(f"{path} cannot be read: it is {kind}; expected a file.")
    return found.st_size


def read_bytes(path: Path | str, max_bytes: int = MAX_BYTES) -> bytes:
    """The contents of a file.

    Raises:
        InputError: it is no regular file, cannot be read, or has more than `max_bytes`.
    """
    size = file_size(path)
    with reading(path, "a file"):
        if size > max_bytes:
            raise ValueError(f"it has {size:,} bytes, and at most {max_bytes:,} are read")
        with open(path, "rb") as file:
            return file.read(max_bytes)


def read_text(path: Path | str, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file in UTF-8, a byte order mark at its start left out.

    Raises:
        InputError: as of `read_bytes`, or other bytes than UTF-8.
    """
    content = read_bytes(path, max_bytes)
    with reading(path, "text in UTF-8"):
        return content.decode("utf-8-sig")


def read_json(path: Path | str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: as of `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, max_bytes), path)


def parse_json(content: bytes | str, subject: Path | str) -> dict[str, Any]:
    """The JSON object in a text.

    NaN and infinite numbers are refused, and a name that an object holds twice, because readers
    differ in what they make of them; so are numbers of more than `MAX_DIGITS` digits and halves of
    surrogate pairs.

    Args:
        content: the text, or its bytes in UTF-8.
        subject: the path of the file, or other words for what the text is.

    Raises:
        InputError: the text holds anything else.
    """
    with reading(subject, "a JSON object", problem="is not readable JSON"):
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        # Python's own conversions are much faster where a file is large
        unusual = _UNUSUAL.search(text) is not None
        values = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_number,
            parse_float=_number if unusual else None,
            parse_int=_integer if unusual else None,
        )
        check_depth(values)
        if unusual:  # half a surrogate pair cannot be written or printed
            json.dumps(values, ensure_ascii=False).encode()
    return check_mapping(values, subject, "a JSON object")


def check_mapping(values: Any, subject: Path | str, expected: str) -> dict[str, Any]:
    """The values of a file, which must be a dict.

    Raises:
        InputError: they are anything else.
    """
    if not isinstance(values, dict):
        raise InputError(f"{subject} holds a {type(values).__name__}; expected {expected}.")
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'an object has the name "{twice[:50]}" twice')
    return values


def _number(text: str) -> float:
    value = float(text) if len(text) <= MAX_DIGITS else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite, or has too many digits")
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits, and at most {MAX_DIGITS} are read")
    return int(text)


def check_depth(values: Any) -> None:
    """Refuse values nested deeper than `MAX_DEPTH`, which recursion elsewhere could not walk.

    Raises:
        RecursionError: they are.
    """
    level = [values]
    for _ in range(MAX_DEPTH + 1):
        level = [
            value
            for outer in level
            if type(outer) in (dict, list)
            for value in (outer.values() if type(outer) is dict else outer)
            if type(value) in (dict, list)
        ]
        if not level:
            return
    raise RecursionError
