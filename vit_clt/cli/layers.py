"""Layers as options name them, "7-11" or "0,4,7-11", and whether a model has them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vit_clt.errors import InputError

_LAYERS = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?", re.ASCII)


def layer_numbers(text: str, name: str = "layers") -> list[int]:
    """The layers of a text such as "7-11" or "0,4,7-11", ends included.

    Args:
        text: the value of an option.
        name: name of the option, for the error.

    Raises:
        InputError: the text does not have this form.
    """
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    numbers: list[int] = []
    for part in text.split(","):
        found = _LAYERS.fullmatch(part.strip())
        if found is None or len(numbers) > 1000:
            raise InputError(
                name, f'is "{shown}"; expected layers below 1000, as in 7-11 or 0,4,7-11.'
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            raise InputError(
                name,
                f'is "{shown}", and {first} is above {last}; expected the lower layer first, '
                f"{last}-{first}.",
            )
        numbers += range(first, last + 1)
    return numbers


def check_depth(name: str, layers: Iterable[int], n_layers: int) -> None:
    """Refuse layers that a model of this depth has not; -1 is its last one.

    Raises:
        InputError: a layer is out of range.
    """
    for layer in layers:
        if not -n_layers <= layer < n_layers:
            raise InputError(name, f"contains {layer}; expected layers from 0 to {n_layers - 1}.")
