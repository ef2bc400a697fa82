"""Folders of images, SPLIT/CLASS/FILE: the split is the first level, the class the second."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vit_clt.data.decoding import image_extensions
from vit_clt.data.local_files import split_folder
from vit_clt.errors import InputError


@dataclass(frozen=True)
class FolderOfImages:
    """The files of one split, in the order of their paths."""

    files: list[Path]
    labels: list[int | None]
    """The number of each file's class in `class_names`; None for a file in no class folder."""
    class_names: list[str]
    """Names of the class folders, sorted; empty if images lie in no folders."""
    own_split: bool
    """Whether the folder has no splits, so that it is read as a whole."""
    remarks: list[str]
    """What is left out, one phrase each."""


def read_folder(place: str, split: str | None) -> FolderOfImages:
    """The images of a split of a folder.

    The split is the folder of that name, or of a name that means the same ("val", "validation").
    Its folders are the classes; what lies deeper belongs to the class above it. A folder without
    splits, whose folders are classes, is one split: it is read where no split is asked for, or
    "train". Images that lie in no class folder have no label. Names that begin with a dot are not
    looked at.

    Args:
        place: the folder.
        split: name of the split; None stands for "test" or, in a folder without splits, for all.

    Raises:
        InputError: there is no such folder or split, or no image.
    """
    folder = split_folder(place, split)
    own_split = folder == Path(place)
    extensions = image_extensions()
    by_class: dict[str | None, list[str]] = {}
    empty, others = [], Counter[str]()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        images = []
        for file in _files(entry.path) if entry.is_dir() else [entry.path]:
            extension = os.path.splitext(file)[1].lower()
            if extension in extensions:
                images.append(file)
            else:
                others[extension] += 1
        if entry.is_dir() and not images:
            empty.append(entry.name)
        elif images:
            by_class.setdefault(entry.name if entry.is_dir() else None, []).extend(images)
    if not by_class:
        raise InputError("data", f"is imagefolder:{place}; found no image in {folder}.")
    class_names = sorted(c for c in by_class if c is not None)
    number = {name: i for i, name in enumerate(class_names)}
    pairs = [
        (Path(file), None if c is None else number[c])
        for file, c in sorted((file, c) for c, files in by_class.items() for file in files)
    ]
    remarks = []
    if others:
        counts = ", ".join(f"{suffix or 'none'} {n}" for suffix, n in sorted(others.items()))
        remarks.append(
            f"files with the extension of no image left out: {others.total()} ({counts})"
        )
    if empty:
        remarks.append(f"folders without an image left out: {len(empty)} ({', '.join(empty[:8])})")
    files, labels = [list(column) for column in zip(*pairs, strict=True)]
    return FolderOfImages(files, labels, class_names, own_split, remarks)


def _files(folder: str) -> list[str]:
    files: list[str] = []
    for parent, folders, names in os.walk(folder):
        # changed in place, so that hidden folders are not entered
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return files
