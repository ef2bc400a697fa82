"""A folder for files that are needed only while their data is."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path


class TemporaryFolder:
    """A new folder where `tempfile` makes them, removed with this object or with its process.

    A copy that a forked process has, or that was sent to a process, removes nothing.
    """

    path: Path

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="vit-clt-"))
        weakref.finalize(self, _remove, self.path, os.getpid())

    def __reduce__(self) -> tuple[object, ...]:
        return _Borrowed, (self.path,)


class _Borrowed(TemporaryFolder):
    def __init__(self, path: Path):
        self.path = path


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
