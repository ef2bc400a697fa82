"""A new folder takes the place of an old one, so that each is there whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from vit_clt.outputs.manifest import MANIFEST_FILE, Manifest

READY = ".vit-clt-ready"
"""Name of a folder inside another, whose files are being moved there (`move_in`)."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def leaves(folder: Path) -> Iterator[str]:
    """Relative names of all files, symbolic links (which are not followed) and empty folders."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in (*files, *links):
            yield (here / name).relative_to(folder).as_posix()
        if here != folder and not files and not folders:
            yield here.relative_to(folder).as_posix()


def exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step.

    Raises:
        OSError: the system or the file system has no such step, or refuses it.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:
        raise OSError(errno.ENOSYS, "folders cannot be exchanged") from error
    paths = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def link(name: str, source: Path, target: Path) -> None:
    """Make one of the `leaves` of `source` appear in `target` too, without a copy if possible."""
    old, new = source / name, target / name
    new.parent.mkdir(parents=True, exist_ok=True)
    if old.is_dir() and not old.is_symlink():
        new.mkdir(exist_ok=True)
        return
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EEXIST):
            raise
        shutil.copy2(old, new, follow_symlinks=False)


def remove(leaf: Path) -> None:
    """Remove one of the `leaves` of a folder."""
    if leaf.is_dir() and not leaf.is_symlink():
        leaf.rmdir()
    else:
        leaf.unlink(missing_ok=True)


def move_in(folder: Path, own: Iterable[str]) -> None:
    """Replace the files of a folder by those in its sub-folder `READY`, where these are complete.

    After a kill a second call goes on. The new manifest comes last, and the old one goes before the
    first new file comes, so that what is there meanwhile is not taken for a finished output.

    Args:
        folder: the folder.
        own: names of the old files. They are asked for only while the old manifest is there.
    """
    ready = folder / READY
    if (ready / MANIFEST_FILE).is_file():
        new = [name for name in leaves(ready) if name != MANIFEST_FILE]
        if Manifest.read(folder) is not None:
            for name in {*own} - {*new, MANIFEST_FILE}:
                remove(folder / name)
            (folder / MANIFEST_FILE).unlink()
        for name in new:
            if (ready / name).is_dir() and not (ready / name).is_symlink():
                (folder / name).mkdir(parents=True, exist_ok=True)
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(ready / name, folder / name)
        os.replace(ready / MANIFEST_FILE, folder / MANIFEST_FILE)
    shutil.rmtree(ready)
