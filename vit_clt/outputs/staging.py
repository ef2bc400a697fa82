"""Files and folders that are complete before they appear.

A file that must be complete even after a kill is written beside its place and then moved there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vit_clt.errors import InputError

STAGING = ".saving-"
"""First part of the names of the folders that `staged_files` writes in; a kill leaves them."""


@contextmanager
def staged_file(path: Path | str) -> Iterator[Path]:
    """A context with a path to write to; the file is moved to `path` when the context ends.

    An exception in the context leaves no part of the file, and an earlier file unchanged. A kill
    leaves `.NAME.part`, which the next write replaces.

    Raises:
        InputError: the file cannot be written.
    """
    target = Path(path)
    staging = beside(target)
    with refused(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield staging
            os.replace(staging, target)
        finally:
            staging.unlink(missing_ok=True)


@contextmanager
def staged_files(folder: Path | str, names: Sequence[str]) -> Iterator[Path]:
    """A context with a folder to write to; its files are moved to `folder` when the context ends.

    They are moved one by one in the order of `names`, so that a kill between two moves leaves old
    files beside new ones, which the reader must be able to tell apart. An exception in the context
    leaves no new file, and earlier files unchanged. Several processes may write at once. A kill
    leaves a folder that `remove_unfinished` removes.

    Raises:
        InputError: the files cannot be written.
    """
    target = Path(folder)
    with refused(target):
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=STAGING) as staging:
            yield Path(staging)
            for name in names:
                os.replace(Path(staging) / name, target / name)


def remove_unfinished(folder: Path | str) -> None:
    """Remove the folders that killed `staged_files` left in `folder`; none may be writing now."""
    for left in Path(folder).glob(f"{STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def staged_folder(path: Path | str) -> Iterator[Path]:
    """A context with a folder to write to, which is moved to `path` when the context ends.

    Its files are synced to the disk before the move. An exception in the context leaves nothing of
    it, and an earlier folder unchanged. A kill leaves `.NAME.part`, which the next write removes.

    Raises:
        InputError: the folder cannot be written.
    """
    target = Path(path)
    staging = beside(target)
    with refused(target):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            yield staging
            for file in sorted(staging.iterdir()):
                sync(file)
            if target.exists():
                shutil.rmtree(target)
            os.replace(staging, target)
            sync(target.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def beside(target: Path) -> Path:
    """Where the file or folder `target` is written before it is moved."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def refused(target: Path) -> Iterator[None]:
    """Turn an error of the file system into an InputError that names `target`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} cannot be written: {error}.") from error


def sync(path: Path) -> None:
    """Wait until a file, or the list of the files of a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
