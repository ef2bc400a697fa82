"""The names of forms of data, such as "digits" or "parquet:PATH", and what each says by itself.

Nothing is read and no library is needed, so that a command line is refused before they load.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from vit_clt.data.local_files import (
    coco_annotations,
    is_image_folder,
    parquet_files,
    split_folder,
)
from vit_clt.data.splits import named_split
from vit_clt.errors import InputError
from vit_clt.inputs import expanded
from vit_clt.places import is_path

OFFLINE = ("digits", "adding")
"""Data sets that come with the package."""
HELD_OUT = {"cifar10": "test", "cifar100": "test", "imagenet100": "validation", "coco": "val"}
"""The split that is not for training, of the data sets known by name."""
FORMS = [
    *OFFLINE,
    *HELD_OUT,
    *(f"{name}:PATH" for name in (*HELD_OUT, "parquet", "imagefolder")),
    "hf:NAME",
]


def split_form(form: str) -> tuple[str, str]:
    """The kind of a form of data and its place, which is "" where it has none.

    Raises:
        InputError: it is no form of data.
    """
    kind, colon, place = form.partition(":")
    if bool(colon) == bool(place) and (
        kind in HELD_OUT
        or (kind in OFFLINE and not place)
        or (kind in ("parquet", "imagefolder", "hf") and place)
    ):
        return kind, expanded(place)
    near = get_close_matches(form, FORMS, n=1)
    meant = f' (did you mean "{near[0]}"?)' if near else ""
    raise InputError("data", f'is "{form}"; expected one of {", ".join(FORMS)}{meant}.')


def checked_split(name: str, split: str, splits: tuple[str, str]) -> str:
    """The one of two splits that is meant.

    Raises:
        InputError: the data set has no such split.
    """
    found = named_split(split, splits, name)
    if found is None:
        raise InputError("split", f'is "{split}"; {name} has "{splits[0]}" and "{splits[1]}".')
    return found


def check_form(form: str, split: str | None) -> None:
    """Refuse a form of data that cannot be loaded, as far as names and folders tell.

    Args:
        form: the form of data.
        split: name of the split; None stands for the held-out one.

    Raises:
        InputError: it is no form of data, or its place or split is not there.
    """
    kind, place = split_form(form)
    if kind in OFFLINE:
        checked_split(kind, split or "test", ("train", "test"))
    elif kind == "coco" and place:
        coco_annotations(place, split or HELD_OUT[kind])
    elif kind == "hf":
        name = place if Path(place).exists() else place.partition(":")[0]  # perhaps a configuration
        if is_path(name) and not Path(name).exists():
            raise InputError("data", f"is {form}; found no such folder, nor such a name.")
    elif kind == "imagefolder" or (kind in HELD_OUT and place and is_image_folder(place)):
        split_folder(place, split)
    else:
        if kind in HELD_OUT and not Path(place).is_file():
            split = checked_split(kind, split or HELD_OUT[kind], ("train", HELD_OUT[kind]))
        if place:
            parquet_files(place, split or "test")
