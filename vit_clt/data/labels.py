"""Class numbers from labels as people store them: numbers, names, truth values, lists of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vit_clt.errors import InputError

MOST_CLASSES = 1_000_000
Renumber = Callable[[Sequence[str]], Sequence[int]]
"""Gives the class number of each name of a class."""


@dataclass(frozen=True)
class ClassNumbers:
    """Labels as class numbers; None stands for an unknown one."""

    numbers: list[int | None]
    names: list[str] | None
    """The names of the classes by number, where the labels were names."""


def class_numbers(
    values: Sequence[Any], name: str, order: Sequence[str] | None = None
) -> ClassNumbers:
    """The class number of each label.

    - whole numbers from 0 are class numbers, also as floats or texts ("7"); truth values are 0 and
      1; a list of one label is that label.
    - other texts are names of classes, numbered in alphabetical order, or in that of `order` if
      every one of them is there.
    - -1, null, NaN, an empty text and an empty list are unknown.

    Args:
        values: the labels.
        name: name of the data, for messages.
        order: names of the classes in label order, as the user gave them.

    Raises:
        InputError: a label is anything else, or there are numbers and names.
    """
    plain = [_plain(value, name) for value in values]
    texts = {value for value in plain if isinstance(value, str)}
    if not texts:
        return ClassNumbers([_number(value, name) for value in plain], None)
    if all(text.isascii() and text.isdigit() and len(text) < 10 for text in texts):
        return ClassNumbers(
            [_number(int(v) if isinstance(v, str) else v, name) for v in plain], None
        )
    for value in plain:
        if value is not None and not isinstance(value, str):
            raise InputError(
                f"labels of {name} hold {value!r} and {min(texts)!r}; expected class numbers or "
                "names, not both."
            )
    names = list(order) if order is not None and texts <= set(order) else sorted(texts)
    number = {text: i for i, text in enumerate(names)}
    return ClassNumbers([None if v is None else number[str(v)] for v in plain], names)


def _plain(value: Any, name: str) -> int | str | None:
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise InputError(
                f"labels of {name} hold the list {str(value)[:60]}; expected one label an image."
            )
        value = value[0] if value else None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int | str):  # True and False are 1 and 0
        return int(value) if isinstance(value, int) else value
    raise InputError(
        f"labels of {name} hold {repr(value)[:60]}; expected class numbers or class names."
    )


def _number(value: int | str | None, name: str) -> int | None:
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or not 0 <= value < MOST_CLASSES:
        raise InputError(
            f"labels of {name} hold {str(value)[:60]}; expected class numbers from 0, or -1 where "
            "the class is not known."
        )
    return value


@dataclass(frozen=True)
class ResolvedLabels:
    """The rows that are kept, their labels (-1 throughout if there are none), and the classes."""

    rows: list[int]
    labels: list[int]
    class_names: list[str]
    left_out: int


def resolved_labels(
    numbers: Sequence[int | None],
    stored: Sequence[str] | None,
    name: str,
    *,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
    prompted: Sequence[str] | None = None,
    renumber: Renumber | None = None,
) -> ResolvedLabels:
    """The labels of the rows to keep: those with a known label, or all if no label is known.

    Args:
        numbers: the class number of every row, None where it is not known.
        stored: the names of the classes in the data.
        name, limit, class_names, prompted, renumber: as of `table_images`.

    Raises:
        InputError: class names do not fit the classes.
    """
    highest = max((n for n in numbers if n is not None), default=-1)
    if renumber is not None and stored is not None:
        if highest >= len(stored):
            raise InputError(
                f"labels of {name} hold {highest}; expected numbers below {len(stored)}, as there "
                "are as many names."
            )
        new = list(renumber(stored))
        numbers = [None if n is None else new[n] for n in numbers]
        highest = max((n for n in numbers if n is not None), default=-1)
    known = prompted if prompted is not None else stored
    if class_names is None:
        class_names = known or []
    elif known is not None:
        check_names(class_names, known, name)
    if class_names and highest >= len(class_names):
        raise InputError(
            "class_names",
            f"holds {len(class_names)} names; {name} has labels up to {highest}, "
            f"expected {highest + 1} names or more.",
        )
    # where no label is known at all, every row is kept
    rows = [i for i, n in enumerate(numbers) if n is not None or highest < 0][:limit]
    scanned = rows[-1] + 1 if limit is not None and len(rows) == limit else len(numbers)
    labels = [-1 if n is None else n for n in (numbers[row] for row in rows)]
    left_out = 0 if highest < 0 else scanned - len(rows)
    return ResolvedLabels(rows, labels, list(class_names), left_out)


def check_names(names: Sequence[str], classes: Sequence[str], name: str) -> None:
    """Refuse class names that are not one for each class, or are the classes in another order.

    Raises:
        InputError: more or fewer names than classes, or the same names in another order.
    """
    if len(names) != len(classes):
        raise InputError(
            "class_names",
            f"holds {len(names)} names; {name} has {len(classes)} classes, expected as many names.",
        )
    if sorted(names) == sorted(classes) and list(names) != list(classes):
        i = next(i for i, (a, b) in enumerate(zip(names, classes, strict=True)) if a != b)
        raise InputError(
            "class_names",
            f'holds "{names[i]}" at place {i}, where {name} has the class "{classes[i]}"; expected '
            "the names in label order.",
        )


def matched(names: Sequence[str], classes: Sequence[str], synonyms: dict[str, str]) -> list[int]:
    """The number in `classes` of each name: the name itself, a synonym, or the number as a text.

    Case, hyphens and underscores do not matter. Names that are not known are accepted only where
    there are as many names as classes and more than half of them are known and stand in their
    places, because then the list is the published one with other spellings.

    Raises:
        InputError: a name is not known, or two names are the same class.
    """
    number = {_folded(c): i for i, c in enumerate(classes)}
    number |= {text: number[c] for text, c in synonyms.items() if c in number}
    number |= {str(i): i for i in range(len(classes))}
    found = [number.get(_folded(name)) for name in names]
    in_place = sum(n == i for i, n in enumerate(found))
    known = sum(n is not None for n in found)
    if known < len(names) == len(classes) and in_place == known > len(classes) / 2:
        return list(range(len(classes)))
    for name, n in zip(names, found, strict=True):
        if n is None:
            raise InputError(
                f'label "{name[:60]}" is no class of this data set; expected {len(classes)} names '
                f"such as {classes[0]} and {classes[-1]}."
            )
        if found.count(n) > 1:
            raise InputError(
                f'labels name the class "{classes[n]}" twice, once as "{name[:60]}"; expected one '
                "name a class."
            )
    return [n for n in found if n is not None]


def _folded(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
