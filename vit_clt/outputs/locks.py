"""A lock that keeps two processes from writing to one folder.

The lock of OUT is the file .OUT.lock beside it, which names the host and the process. It stays
after a kill; a process that is gone from this host holds nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vit_clt.errors import InputError


class FolderLock:
    """The lock of an output folder; a process may take it more than once.

    Args:
        folder: the folder, without symbolic links.
        command: name of the command, for the sentence that another process gets.
    """

    def __init__(self, folder: Path, command: str):
        # what is beside a mount point may not be shared by those who share the folder
        is_beside = not folder.is_mount() and is_writable(folder.parent)
        self.path = folder.with_name(f".{folder.name}.lock") if is_beside else folder / ".lock"
        self._folder, self._command = folder, command
        self._made: list[Path] = []
        self._is_held = False

    def take(self) -> None:
        """Take the lock.

        Raises:
            InputError: another process has it, or the file cannot be written.
        """
        try:
            self._made = [p for p in self.path.parents if not p.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._opened() as file:
                holder = _read(file)
                if holder is not None and _may_live(holder):
                    raise InputError(
                        "out",
                        f"is {self._folder}, which process {holder['pid']} on {holder['host']} "
                        f"({holder['command']}) writes to; expected one process a folder. If it is "
                        f"gone, remove {self.path}.",
                    )
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(_this_process(self._command)).encode(), 0)
                self._is_held = True
        except OSError as error:
            self._remove_made()
            raise InputError(
                "out", f"is {self._folder}, which cannot be written: {error}."
            ) from error

    def release(self) -> None:
        """Give the lock back, and remove the folders that were made for it and are empty."""
        if not self._is_held:
            return
        self._is_held = False
        with suppress(OSError), self._opened() as file:
            holder = _read(file)
            if holder is None or holder["pid"] == os.getpid():
                self.path.unlink()
        self._remove_made()

    def _remove_made(self) -> None:
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file, which no other process looks at or changes meanwhile."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                # the system gives this one back when the process ends
                fcntl.flock(file, fcntl.LOCK_EX)
                # another process may have removed the file before it was locked
                if self.path.exists() and os.path.samestat(os.fstat(file), self.path.stat()):
                    yield file
                    return
            finally:
                os.close(file)


def _this_process(command: str) -> dict[str, Any]:
    pid = os.getpid()
    facts = {"host": socket.gethostname(), "pid": pid, "started": _started(pid)}
    return facts | {"command": f"vit-clt {command}".strip()}


def _read(file: int) -> dict[str, Any] | None:
    """Who holds the lock; None if a kill came before this was written."""
    try:
        values = json.loads(os.pread(file, 10_000, 0))
        return {name: values[name] for name in ("host", "pid", "started", "command")}
    except (ValueError, KeyError, TypeError):
        return None


def _may_live(holder: dict[str, Any]) -> bool:
    """Whether this is another process that is alive, or on a host that cannot be asked."""
    if holder["host"] != socket.gethostname():
        return True
    if holder["pid"] == os.getpid():
        return False
    try:
        os.kill(holder["pid"], 0)
    except PermissionError:
        pass
    except (OSError, TypeError, OverflowError):
        return False
    # a number is used again after a while, and soon in a container
    return bool(_started(holder["pid"]) == holder["started"])


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the host did; None where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest one above it that is there."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    return os.access(nearest, os.W_OK)
