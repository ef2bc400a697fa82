"""Is a run, or what a file was made with, the same as now?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vit_clt.errors import InputError


def check_same(
    values: Mapping[str, Any],
    recorded: Mapping[str, Any],
    where: str,
    about: Mapping[str, str] | None = None,
    remedy: str | None = None,
) -> None:
    """Refuse settings that differ from those of the run, or the files, to go on with.

    Args:
        values: the present settings by name, as JSON values. Objects are compared entry by entry,
            named "outer.inner".
        recorded: the recorded settings by name. Names that `values` lacks are not compared; a name
            that is not recorded must be None.
        where: what has the recorded settings, for the sentence "expected 4, as in {where}.".
        about: by name, what a value stands for, where the sentence would show two bare hashes.
        remedy: as of `InputError`.

    Raises:
        InputError: a value differs; the sentence has the first name that does, and both values.
    """
    # through JSON and back, because a tuple comes back from a file as a list
    now, then = (json.loads(json.dumps(dict(s), default=str)) for s in (values, recorded))
    for name, value, expected in _differences(now, then):
        note = f" ({about[name]})" if about and name in about else ""
        text = f"is {_short(value)}{note}; expected {_short(expected)}, as in {where}."
        raise InputError(name, text, remedy=remedy)


def _differences(
    values: dict[str, Any], recorded: dict[str, Any], outer: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name, value in values.items():
        expected = recorded.get(name)
        if isinstance(value, dict) and isinstance(expected, dict):
            yield from _differences(value, expected, f"{outer}{name}.")
        elif value != expected:
            yield f"{outer}{name}", value, expected


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
