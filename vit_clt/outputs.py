"""An output folder: refused before anything is written, each file complete before it appears."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from vit_clt.errors import InputError


class OutputFolder:
    """Where a command writes.

    Args:
        path: the folder; must be absent or empty unless `overwrite`.
        files: names the command writes; `overwrite` removes these and nothing else. A name may lie
            in a sub-folder and hold wildcards ("pages/pages-*.js").
        overwrite: replace an earlier output.
        resume: name of a file that marks an unfinished output to go on with; what is there stays.

    Raises:
        InputError: the folder is occupied, or cannot be one.
    """

    def __init__(
        self,
        path: Path | str,
        files: Sequence[str],
        overwrite: bool = False,
        resume: str | None = None,
    ):
        self.path = Path(path)
        self.files = list(files)
        for parent in (self.path, *self.path.parents):
            if parent.exists() and not parent.is_dir():
                raise InputError(f"out is {self.path}; {parent} is a file, expected a folder.")
        self.resumes = resume is not None and (self.path / resume).is_file()
        if overwrite or self.resumes or not self.path.is_dir():
            return
        # a kill may come before the first whole file
        found = [p for p in self.path.iterdir() if p.name not in {f".{f}.part" for f in self.files}]
        if found and resume is not None:
            raise InputError(
                f"out is {self.path}, which holds files but no {resume}; expected a run to resume, "
                "or a new folder."
            )
        if found:
            raise InputError(
                f"out is {self.path}, which is not empty; expected a new folder, or --overwrite."
            )

    def open(self) -> OutputFolder:
        """Create the folder and, unless it is resumed, remove the files of an earlier run."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in () if self.resumes else self.files:
                for found in self.path.glob(name):
                    found.unlink()
        except OSError as error:
            raise InputError(f"out is {self.path}, which cannot be written: {error}.") from error
        return self

    def write(self, name: str, content: str | bytes) -> None:
        """Write a whole file; a failed write leaves no part of it."""
        assert any(fnmatch(name, each) for each in self.files), name
        target = self.path / name
        staging = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(exist_ok=True)
            staging.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            os.replace(staging, target)
        except (OSError, UnicodeError) as error:
            staging.unlink(missing_ok=True)
            raise InputError(f"{target} cannot be written: {error}.") from error

    def stream(self, name: str) -> IO[str]:
        """A line-buffered text file that grows while the command runs, on when it is resumed."""
        assert name in self.files, name
        path = self.path / name
        torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        if torn:  # a kill in the middle of a line
            file.write("\n")
        return file
