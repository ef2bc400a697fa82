"""A process that is killed, or finds the disk full, at any of its changes to the file system.

Nothing runs after a kill: from the chosen event on, every further change fails in the same way, so
that no clean-up of the code under test can undo what a kill would have left.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vit_clt.outputs import folder

CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "link", "symlink")


class Killed(BaseException):
    """Stands for a SIGKILL."""


class Events:
    """Counts changes to the file system, and fails from the n-th on (a kill) or at it alone.

    Args:
        at: number of the event, from 0.
        error: what is raised; `Killed` is raised at every later event too.
    """

    def __init__(self, at: int | None, error: Callable[[], BaseException]):
        self.at, self.error, self.seen = at, error, 0

    def happens(self) -> None:
        number, self.seen = self.seen, self.seen + 1
        if self.at is None or number < self.at:
            return
        error = self.error()
        if number == self.at or isinstance(error, Killed):
            raise error


@contextmanager
def events(at: int | None, error: Callable[[], BaseException] = Killed) -> Iterator[Events]:
    """Let `error` happen at the n-th change; with None they are counted only."""
    counted = Events(at, error)
    opened = io.open

    def changing(original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            counted.happens()
            return original(*args, **kwargs)

        return changed

    def opening(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode[0] not in "wax":
            return opened(file, mode, *args, **kwargs)
        counted.happens()
        stream = opened(file, mode, *args, **kwargs)
        try:
            counted.happens()  # the file is there and empty
        except BaseException:
            stream.close()
            raise
        return stream

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, changing(getattr(os, name)))
        patch.setattr(io, "open", opening)
        patch.setattr("builtins.open", opening)
        patch.setattr(folder, "exchange", changing(folder.exchange))
        try:
            yield counted
        except Killed:
            folder._unclosed.clear()  # a killed process closes nothing


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def contents(folder: Path) -> dict[str, Any] | None:
    """Everything in a folder by name: bytes of files, targets of links; None if it is absent."""
    if not folder.is_dir():
        return None
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }
