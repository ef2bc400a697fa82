"""Dataclasses made from the plain values of a file, each of the type that its field says."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Made = TypeVar("Made")


def made(kind: type[Made], values: Any) -> Made:
    """An instance of a dataclass from the values of a file, each of the type that its field says.

    Called within `reading`, which makes a sentence of what is wrong.

    Args:
        kind: the dataclass. A list of values becomes a tuple where its field is one.
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
    return kind(
        **{
            name: tuple(value) if isinstance(value, list) and _is_tuple(hints[name]) else value
            for name, value in values.items()
        }
    )


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


def _is_tuple(hint: Any) -> bool:
    kind = get_origin(hint)
    return kind is tuple or (kind in (Union, UnionType) and any(map(_is_tuple, get_args(hint))))


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f'"{text}"' if len(text) <= 50 else f'"{text[:50]}..."'
