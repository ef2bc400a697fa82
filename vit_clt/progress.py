"""Progress of long work: a bar on a terminal and in a notebook, plain lines in a log.

A bar that is drawn anew ten times a second fills a log with hundreds of fragments on one line.
Where standard error is a file or a pipe, a line every ten seconds and one at the end say the same.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS_A_LINE = 10
"""Least time between two lines of a log, apart from the last one."""
_LINE = "{desc}: {n_fmt}/{total_fmt}{unit} in {elapsed}, {remaining} left, {rate_fmt}{postfix}"


class Progress(tqdm):  # type: ignore[type-arg]
    """`tqdm` with the same arguments, which writes lines where it cannot draw over itself.

    It is plain text in notebooks too, which needs no ipywidgets.
    """

    def __init__(self, *args: Any, **options: Any):
        stream = options.get("file") or sys.stderr
        self._writes_lines = not _draws_over(stream)
        self._last = time.monotonic()
        if self._writes_lines:
            options = {"bar_format": _LINE, **options, "leave": False}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or write a line if the last one is old enough; says whether it was drawn.

        Args:
            msg: what to show in place of the bar.
            pos: line of the terminal.
        """
        if not self._writes_lines:
            return bool(super().display(msg, pos))
        if time.monotonic() - self._last >= SECONDS_A_LINE:
            self._write_line()
        return False

    def close(self) -> None:
        """End the bar; a log gets its last line."""
        if self._writes_lines and not self.disable:
            self._write_line()
        super().close()

    def _write_line(self) -> None:
        self._last = time.monotonic()
        self.fp.write(f"{self}\n")
        self.fp.flush()


def _draws_over(stream: Any) -> bool:
    """Whether a carriage return brings this stream back to the begin of its line."""
    is_notebook = type(stream).__module__.startswith("ipykernel")
    return is_notebook or bool(getattr(stream, "isatty", lambda: False)())
