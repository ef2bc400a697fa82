"""What this process is told from outside: its place among several, and the request to stop.

Launchers such as torchrun and accelerate set the environment variables that are read here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vit_clt.errors import Stopped


def n_processes() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


def own_device(device: str) -> str:
    """The device of this process: of several on one machine, "cuda" is the GPU of its number."""
    if device == "cuda" and n_processes() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM or Ctrl-C has come, so that a run can be saved first.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """
    signals: list[int] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and number in signals:
            raise KeyboardInterrupt
        signals.append(number)
        if number == signal.SIGINT and is_main():
            # print may be interrupted in the middle of a line of its own
            os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(signals)
    except Stopped as stopped:
        stopped.by_keyboard = signal.SIGINT in signals
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
