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
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from vit_clt.errors import InputError, Stopped

Made = TypeVar("Made")
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
        _check_depth(values)
        if unusual:  # half a surrogate pair cannot be written or printed
            json.dumps(values, ensure_ascii=False).encode()
    return _mapping(values, subject, "a JSON object")


def read_yaml(path: Path | str, max_bytes: int = 1_000_000) -> dict[str, Any]:
    """The YAML mapping in a file that holds nothing but what JSON can hold.

    Raises:
        InputError: as of `read_bytes`; no readable YAML; an alias, which a few lines of text could
            expand to gigabytes; a name twice; or a value or name of another type, such as a date.
    """
    content = read_bytes(path, max_bytes)
    with reading(path, "plain values", problem="is not readable YAML"):
        values = yaml.load(content.decode("utf-8-sig"), Loader=_PlainLoader)
        _check_depth(values)
    return _mapping(values, path, "a mapping")


def made(kind: type[Made], values: Any) -> Made:
    """An instance of a dataclass from the values of a file, each of the type that its field says.

    Called within `reading`, which makes a sentence of what is wrong.

    Args:
        kind: the dataclass.
        values: its fields by name.

    Raises:
        ValueError: a name is unknown or missing, or a value has another type or is not finite.
        InputError: the dataclass itself refuses a value.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{_short(values)} is no object")
    known: Any = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for name, field in known.items():
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if name not in values and not has_default:
            raise ValueError(f'"{name}" is missing')
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"there is no field {_short(name)}")
        is_default = value is None and known[name].default is None
        if not is_default and not fits(value, hints[name]):
            raise ValueError(f"{name} is {_short(value)}, which is no {_named(hints[name])}")
    return kind(**values)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation: exact for plain types, numbers finite.

    An integer is a number, a bool is neither, and a list fits where a tuple is meant.
    """
    kind, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, UnionType):
        return any(fits(value, each) for each in inside)
    if kind is Literal:
        return isinstance(value, str) and value in inside
    if kind in (list, tuple) and isinstance(value, list):
        if kind is list or Ellipsis in inside:
            return all(fits(each, inside[0]) for each in value)
        return len(value) == len(inside) and all(map(fits, value, inside))
    if hint in (None, NoneType):
        return value is None
    if hint in (int, float):
        is_number = isinstance(value, int | float if hint is float else int)
        return is_number and not isinstance(value, bool) and abs(value) < math.inf
    return isinstance(value, kind or hint)


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f'"{text}"' if len(text) <= 50 else f'"{text[:50]}..."'


def _mapping(values: Any, subject: Path | str, expected: str) -> dict[str, Any]:
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


def _check_depth(values: Any) -> None:
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


_PLAIN_TYPES = ("map", "seq", "str", "int", "float", "bool", "null")


class _PlainLoader(yaml.SafeLoader):
    """Makes no Python objects (`yaml.SafeLoader`), and of the plain ones those of JSON alone."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias (*name), and none are read")
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN_TYPES:
            raise ValueError(f"it has a value of type {node.tag[:80]}")
        value = super().construct_object(node, deep)
        is_long = isinstance(value, int) and abs(value) >= 10**MAX_DIGITS
        if is_long or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"the number {node.value[:20]} is not finite, or has too many digits")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep)
        if len(values) != len(node.value):
            raise ValueError("a mapping has a name twice")
        if not all(isinstance(name, str) for name in values):
            raise ValueError("a mapping has a name that is no text")
        return values
