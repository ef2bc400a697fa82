"""The ranges of all options that are counts or seeds, and devices, checked before a command runs.

What a range cannot say, such as a limit that depends on the data, is checked by the library.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from vit_clt.cli.command import BaseCommand
from vit_clt.cli.devices import check_device_name
from vit_clt.errors import InputError

_SOME = 1, 1_000_000
_IMAGES = 1, 10**12
RANGES = {
    "seed": (0, 2**63 - 1),
    # numbers of images: those that are there, if fewer
    "limit": _IMAGES,
    "train_limit": _IMAGES,
    "eval_limit": _IMAGES,
    "corpus_limit": _IMAGES,
    "effect_images": _IMAGES,
    "sample": _IMAGES,
    # images by number
    "image": (0, 10**12),
    "query": (0, 10**12),
    # features and layers
    "k": (1, 10**9),
    "n_features": (1, 10**9),
    "target": (-1000, 1000),
    # what is computed or drawn for each of them
    "count": _SOME,
    "top": _SOME,
    "strongest": _SOME,
    "drawn": _SOME,
    "graphs": (0, 1_000_000),
    "max_nodes": _SOME,
    "max_groups": (2, 10**9),
    "draws": _SOME,
    "random": (0, 10_000),
    "interventions": (2, 1_000_000),
}
"""Lowest and highest value, by the name of the option."""


def check_ranges(command: BaseCommand) -> None:
    """Refuse values that no command can have.

    Raises:
        InputError: a count or seed out of its range, a number that is not finite, a text that no
            file and no name can have, or no name of a device.
    """
    for field in fields(command):
        given = getattr(command, field.name)
        for value in given if isinstance(given, tuple) else (given,):
            _check(field.name, value)


def _check(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(name, f"is {value}; expected a finite number.")
    if isinstance(value, str | Path) and "\0" in str(value):
        raise InputError(name, f"is {str(value)!r}; expected a text without a NUL character.")
    if name == "device":
        check_device_name(value)
    if name in RANGES and isinstance(value, int) and not isinstance(value, bool):
        low, high = RANGES[name]
        if value < low:
            raise InputError(name, f"is {value}; expected at least {low}.")
        if value > high:
            raise InputError(name, f"is {value}; expected at most {high}.")
