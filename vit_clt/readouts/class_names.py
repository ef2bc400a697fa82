"""A class by its name, a part of its name, or its number."""

from __future__ import annotations

from collections.abc import Sequence

from vit_clt.errors import InputError


def class_number(class_names: Sequence[str], target: str | int, field: str = "target") -> int:
    """The number of the class with this name or number.

    A class whose name is exactly `target` comes first, then the class of that number, then a class
    whose name is `target` but for capitals, and last the only class whose name contains `target`,
    capitals ignored.

    Args:
        class_names: names of the classes in label order.
        target: a name, a part of one, or a number; an int is never taken for a name.
        field: what the error calls `target`.

    Raises:
        InputError: no class fits, several do, or there are no class names.
    """
    names = list(class_names)
    if not names:
        raise InputError(field, f'is "{target}", but there are no class names; expected some.')
    text = str(target)
    fits = [c for c, name in enumerate(names) if name == target]
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    if not fits and is_number and int(text) < len(names):
        return int(text)
    if not fits and text and isinstance(target, str):
        plain, folded = text.casefold(), [name.casefold() for name in names]
        fits = [c for c, name in enumerate(folded) if name == plain]
        fits = fits or [c for c, name in enumerate(folded) if plain in name]
    if len(fits) != 1:
        named = [names[c] for c in fits] or names
        known = ", ".join([*named[:10], *(["..."] if len(named) > 10 else [])])
        count = f"{len(fits)} class names" if fits else "no class name"
        raise InputError(
            field,
            f'is "{text[:100]}", which fits {count}; expected one of {known}, or a number '
            f"from 0 to {len(names) - 1}.",
        )
    return fits[0]
