"""Output folders, files that are complete before they appear, and their hashes.

A folder is refused before anything is written to it. A file that must be complete even after a kill
is written beside its place and then moved there. `check_same` refuses to go on with a run that was
started with other settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from vit_clt.errors import InputError

STAGING = ".saving-"
"""First part of the names of the folders that `staged_files` writes in; a kill leaves them."""


class OutputFolder:
    """The folder that a command writes to.

    Args:
        path: the folder; it must be absent or empty unless `overwrite`.
        files: names of the files that the command writes; `overwrite` removes these and no others.
            A name may have a sub-folder and wildcards ("pages/pages-*.js").
        overwrite: replace an earlier output.
        resume: name of a file; a folder that has it is an unfinished output, which is kept and
            resumed.

    Raises:
        InputError: the folder has files already, or cannot be a folder.
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
        self._is_open = False
        for parent in (self.path, *self.path.parents):
            if parent.exists() and not parent.is_dir():
                raise InputError("out", f"is {self.path}; {parent} is a file, expected a folder.")
        self.resumes = resume is not None and (self.path / resume).is_file()
        if overwrite or self.resumes or not self.path.is_dir():
            return
        # a kill may come before the first complete file, and then leaves only a part of one
        present = [
            p
            for p in self.path.iterdir()
            if p.name not in {_beside(Path(f)).name for f in self.files}
        ]
        if present and resume is not None:
            raise InputError(
                "out",
                f"is {self.path}, which holds files but no {resume}; expected a run to resume, "
                "or a new folder.",
            )
        if present:
            raise InputError(
                "out",
                f"is {self.path}, which is not empty; expected a new folder.",
                remedy="overwrite",
            )

    def open(self) -> OutputFolder:
        """Create the folder and, unless it is resumed, remove the files of an earlier run.

        A second call changes nothing.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in () if self.resumes or self._is_open else self.files:
                for file in self.path.glob(name):
                    file.unlink()
            self._is_open = True
        except OSError as error:
            raise InputError("out", f"is {self.path}, which cannot be written: {error}.") from error
        return self

    def write(self, name: str, content: str | bytes) -> None:
        """Write a whole file; a failed write leaves no part of it.

        Raises:
            InputError: the file cannot be written.
        """
        assert any(fnmatch(name, pattern) for pattern in self.files), name
        try:
            data = content.encode("utf-8") if isinstance(content, str) else content
        except UnicodeError as error:
            raise InputError(f"{self.path / name} cannot be written: {error}.") from error
        with staged_file(self.path / name) as staging:
            staging.write_bytes(data)

    def stream(self, name: str) -> IO[str]:
        """A line-buffered text file to append to; a command that resumes goes on with it."""
        assert name in self.files, name
        path = self.path / name
        torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        if torn:  # the command was killed in the middle of a line
            file.write("\n")
        return file


# ---- files that are complete before they appear --------------------------------------------------


@contextmanager
def staged_file(path: Path | str) -> Iterator[Path]:
    """A context with a path to write to; the file is moved to `path` when the context ends.

    An exception in the context leaves no part of the file, and an earlier file unchanged. A kill
    leaves `.NAME.part`, which the next write replaces.

    Raises:
        InputError: the file cannot be written.
    """
    target = Path(path)
    staging = _beside(target)
    with _refused(target):
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
    with _refused(target):
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
    staging = _beside(target)
    with _refused(target):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            yield staging
            for file in sorted(staging.iterdir()):
                _sync(file)
            if target.exists():
                shutil.rmtree(target)
            os.replace(staging, target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


@contextmanager
def _refused(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} cannot be written: {error}.") from error


def _sync(path: Path) -> None:
    # the contents must be on the disk before the rename is
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- comparing files and runs -------------------------------------------------------------------


def file_hash(path: Path | str) -> str:
    """Hex SHA-256 of a file, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def check_same(
    values: Mapping[str, Any],
    recorded: Mapping[str, Any],
    where: str,
    about: Mapping[str, str] | None = None,
    remedy: str | None = None,
) -> None:
    """Refuse settings that differ from those of the run, or the files, to go on with.

    Args:
        values: the present settings by name, as JSON values. Objects are compared entry by entry,
            named "outer.inner".
        recorded: the recorded settings by name. Names that `values` lacks are not compared; a name
            that is not recorded must be None.
        where: what has the recorded settings, for the sentence "expected 4, as in {where}.".
        about: by name, what a value stands for, where the sentence would show two bare hashes.
        remedy: as of `InputError`.

    Raises:
        InputError: a value differs; the sentence has the first name that does, and both values.
    """
    # through JSON and back, because a tuple comes back from a file as a list
    now, then = (json.loads(json.dumps(dict(s), default=str)) for s in (values, recorded))
    for name, value, expected in _differences(now, then):
        note = f" ({about[name]})" if about and name in about else ""
        text = f"is {_short(value)}{note}; expected {_short(expected)}, as in {where}."
        raise InputError(name, text, remedy=remedy)


def _differences(
    values: dict[str, Any], recorded: dict[str, Any], outer: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name, value in values.items():
        expected = recorded.get(name)
        if isinstance(value, dict) and isinstance(expected, dict):
            yield from _differences(value, expected, f"{outer}{name}.")
        elif value != expected:
            yield f"{outer}{name}", value, expected


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
