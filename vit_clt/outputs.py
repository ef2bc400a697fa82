"""An output folder: refused before anything is written, each file complete before it appears."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from vit_clt.errors import InputError


class OutputFolder:
    """Where a command writes.

    Args:
        path: the folder; must be absent or empty unless `overwrite`.
        files: names the command writes; `overwrite` removes these and nothing else.
        overwrite: replace an earlier output.

    Raises:
        InputError: the folder is occupied, or cannot be one.
    """

    def __init__(self, path: Path | str, files: Sequence[str], overwrite: bool = False):
        self.path = Path(path)
        self.files = list(files)
        for parent in (self.path, *self.path.parents):
            if parent.exists() and not parent.is_dir():
                raise InputError(f"out is {self.path}; {parent} is a file, expected a folder.")
        if not overwrite and self.path.is_dir() and any(self.path.iterdir()):
            raise InputError(
                f"out is {self.path}, which is not empty; expected a new folder, or --overwrite."
            )

    def open(self) -> OutputFolder:
        """Create the folder and remove the files of an earlier run."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in self.files:
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"out is {self.path}, which cannot be written: {error}.") from error
        return self

    def write(self, name: str, text: str) -> None:
        """Write a whole file; a failed write leaves no part of it."""
        assert name in self.files, name
        target, staging = self.path / name, self.path / f".{name}.part"
        try:
            staging.write_text(text, encoding="utf-8")
            os.replace(staging, target)
        except (OSError, UnicodeError) as error:
            staging.unlink(missing_ok=True)
            raise InputError(f"{target} cannot be written: {error}.") from error

    def stream(self, name: str) -> IO[str]:
        """A line-buffered text file that grows while the command runs."""
        assert name in self.files, name
        return open(self.path / name, "w", buffering=1, encoding="utf-8")
