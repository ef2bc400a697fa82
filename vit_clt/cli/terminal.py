"""The stream that commands print to: names from strangers' files cannot act on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from vit_clt.text import printable


class PrintableStream:
    """A text stream that leaves out control characters, and otherwise is the stream below it.

    Characters that the encoding of the terminal does not have are written as their escapes.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the printable part of the text; returns the number of characters given."""
        shown = printable(text)
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """A context in which everything printed goes through a `PrintableStream`."""
    with redirect_stdout(PrintableStream(sys.stdout)):
        yield
