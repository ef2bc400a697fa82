"""Where the files of a split lie, by their names alone: nothing is opened, no library is needed."""

from __future__ import annotations

import re
from pathlib import Path

from vit_clt.data.splits import is_split_name, named_split, split_names
from vit_clt.errors import InputError


def parquet_files(place: str, split: str) -> list[Path]:
    """The files of a split, in the order of their names; a single file is its own split.

    In a folder they are SPLIT.parquet and SPLIT followed by a number (test-00000-of-00001.parquet),
    or all parquet files of the folder SPLIT. "val" and "validation" mean the same.

    Raises:
        InputError: there are none.
    """
    path = Path(place)
    if path.is_file():
        return [path]
    present = sorted(path.iterdir()) if path.is_dir() else []
    for name in split_names(split):
        shard = re.compile(rf"{re.escape(name)}([-_.]?\d.*)?\.parquet", re.IGNORECASE)
        files = [file for file in present if shard.fullmatch(file.name)]
        for folder in present:
            if not files and folder.name.lower() == name and folder.is_dir():
                files = sorted(f for f in folder.iterdir() if f.suffix == ".parquet")
        if files:
            return files
    raise InputError(
        "data",
        f"is parquet:{place}; expected a parquet file, or a folder with {split}*.parquet.",
    )


def split_folder(place: str, split: str | None) -> Path:
    """The folder that holds the images of a split, which is `place` itself if it has no splits.

    Args:
        place: a folder SPLIT/CLASS/FILE, or CLASS/FILE without splits.
        split: name of the split; None stands for "test" or, in a folder without splits, for all.

    Raises:
        InputError: there is no such folder or split.
    """
    root = Path(place)
    if not root.is_dir():
        raise InputError("data", f"is imagefolder:{place}; expected a folder there.")
    folders = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    name = named_split(split or "test", folders, f"imagefolder:{place}")
    if name is not None:
        return root / name
    if not any(map(is_split_name, folders)) and split in (None, "train"):
        return root
    listed = ", ".join(folders[:8]) + (", ..." if len(folders) > 8 else "")
    raise InputError(
        "split",
        f'is "{split or "test"}"; expected a folder of that name in {place}, which has '
        f"{listed or 'no folders'}.",
    )


def is_image_folder(place: str) -> bool:
    """Whether a place is a folder of images, and none of parquet files.

    Raises:
        InputError: nothing is there.
    """
    path = Path(place)
    if not path.exists():
        raise InputError(
            "data",
            f"is {place}, which does not exist; expected a parquet file, a folder of them, or of "
            "images.",
        )
    return path.is_dir() and not any(
        file.suffix == ".parquet" for file in [*path.iterdir(), *path.glob("*/*.parquet")]
    )


def coco_annotations(place: str, split: str) -> tuple[Path, Path]:
    """The annotations of a split of COCO in its official layout, and the folder of its images.

    Raises:
        InputError: the folder has no such file.
    """
    folder = Path(place)
    for name in split_names(split):
        path = folder / "annotations" / f"instances_{name}2017.json"
        if path.is_file():
            return path, folder / f"{name}2017"
    splits = sorted(
        file.stem.removeprefix("instances_").removesuffix("2017")
        for file in (folder / "annotations").glob("instances_*2017.json")
    )
    if splits:
        raise InputError("split", f'is "{split}"; coco:{folder} has {" and ".join(splits)}.')
    raise InputError(
        "data", f"is coco:{folder}; expected annotations/instances_{split}2017.json in that folder."
    )
