"""Names of splits: what a folder or a file of a split may be called."""

from __future__ import annotations

from collections.abc import Iterable

from vit_clt.errors import InputError

SYNONYMS = (
    ("train", "training"),
    ("validation", "val", "valid", "dev"),
    ("test", "testing", "eval", "evaluation"),
)


def split_names(split: str) -> tuple[str, ...]:
    """The names of a split in lower case: itself first, then the names that mean the same."""
    lower = split.lower()
    for names in SYNONYMS:
        if lower in names:
            return (lower, *(name for name in names if name != lower))
    return (lower,)


def is_split_name(name: str) -> bool:
    """Whether this is a usual name of a split, so that a folder of that name is no class."""
    return any(name.lower() in names for names in SYNONYMS)


def named_split(split: str, present: Iterable[str], where: str) -> str | None:
    """The one of the present splits that `split` means: that name, or else one that means the same.

    Raises:
        InputError: several mean the same, and none has the very name.
    """
    names = set(present)
    if split in names:
        return split
    same = sorted(name for name in names if name.lower() in split_names(split))
    if len(same) > 1:
        raise InputError("split", f'is "{split}"; {where} has {" and ".join(same)}: name one.')
    return same[0] if same else None
