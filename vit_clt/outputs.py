"""What is on disk: output folders, files that are complete before they appear, and their hashes.

A folder is refused before anything is written to it. Everything that must survive a kill is written
beside its place and moved there. `check_same` refuses to go on with what was started otherwise.
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
"""How the folders that `staged_files` writes in are called; a kill leaves them."""


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
        self._is_open = False
        for parent in (self.path, *self.path.parents):
            if parent.exists() and not parent.is_dir():
                raise InputError("out", f"is {self.path}; {parent} is a file, expected a folder.")
        self.resumes = resume is not None and (self.path / resume).is_file()
        if overwrite or self.resumes or not self.path.is_dir():
            return
        # a kill may come before the first whole file
        found = [
            p
            for p in self.path.iterdir()
            if p.name not in {_beside(Path(f)).name for f in self.files}
        ]
        if found and resume is not None:
            raise InputError(
                "out",
                f"is {self.path}, which holds files but no {resume}; expected a run to resume, "
                "or a new folder.",
            )
        if found:
            raise InputError(
                "out",
                f"is {self.path}, which is not empty; expected a new folder.",
                remedy="overwrite",
            )

    def open(self) -> OutputFolder:
        """Create the folder and, unless it is resumed, remove the files of an earlier run.

        Open already, it stays as it is.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in () if self.resumes or self._is_open else self.files:
                for found in self.path.glob(name):
                    found.unlink()
            self._is_open = True
        except OSError as error:
            raise InputError("out", f"is {self.path}, which cannot be written: {error}.") from error
        return self

    def write(self, name: str, content: str | bytes) -> None:
        """Write a whole file; a failed write leaves no part of it."""
        assert any(fnmatch(name, each) for each in self.files), name
        try:
            whole = content.encode("utf-8") if isinstance(content, str) else content
        except UnicodeError as error:
            raise InputError(f"{self.path / name} cannot be written: {error}.") from error
        with staged_file(self.path / name) as staging:
            staging.write_bytes(whole)

    def stream(self, name: str) -> IO[str]:
        """A line-buffered text file that grows while the command runs, on when it is resumed."""
        assert name in self.files, name
        path = self.path / name
        torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        if torn:  # a kill in the middle of a line
            file.write("\n")
        return file


# ---- written beside, moved into place -----------------------------------------------------------


@contextmanager
def staged_file(path: Path | str) -> Iterator[Path]:
    """A path beside `path` to write to; the file takes its place when the block ends.

    A block that fails leaves nothing of it, and an earlier file as it was. What a kill leaves,
    `.NAME.part`, the next write replaces.

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
    """A folder to write files to; when the block ends they take their places in `folder`.

    They are moved one by one in the order of `names`, so a kill between two moves leaves some files
    of either write: whoever reads them must tell. A block that fails leaves nothing, and earlier
    files as they were. Several processes may write at once. What a kill leaves is removed by
    `remove_unfinished`.

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
    """Remove what `staged_files` left in `folder` when it was killed; no other may be at work."""
    for left in Path(folder).glob(f"{STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def staged_folder(path: Path | str) -> Iterator[Path]:
    """A folder beside `path` to write to, which takes its place when the block ends.

    Its files are on the disk, not merely on their way to it, before it does. A block that fails
    leaves nothing of it, and an earlier folder as it was. What a kill leaves, `.NAME.part`, the
    next write removes.

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
    # a rename must not reach the disk before what it names
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- the same file, the same run ----------------------------------------------------------------


def file_hash(path: Path | str) -> str:
    """Hex SHA-256 of a file, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: the file cannot be read, or holds anything else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; expected a JSON object.")
    return found


def check_same(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    where: str,
    about: Mapping[str, str] | None = None,
    remedy: str | None = None,
) -> None:
    """Refuse to go on with what was started, or made, otherwise.

    Args:
        found: what is asked for now, by name: JSON values. Objects in it are compared entry by
            entry, named "outer.inner".
        expected: what was recorded. Names that `found` lacks are not compared; a name that is not
            recorded is expected to be None.
        where: what was recorded, as in "expected 4, as in the run in out/run".
        about: what the value of a name stands for, where the name and two hashes do not say it.
        remedy: as of `InputError`.

    Raises:
        InputError: the first name whose value differs, what it is and what is expected.
    """
    # a tuple comes back from a file as a list
    now, then = (json.loads(json.dumps(dict(each), default=str)) for each in (found, expected))
    for name, value, recorded in _differences(now, then):
        note = f" ({about[name]})" if about and name in about else ""
        text = f"is {_short(value)}{note}; expected {_short(recorded)}, as in {where}."
        raise InputError(name, text, remedy=remedy)


def _differences(
    found: dict[str, Any], expected: dict[str, Any], within: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name, value in found.items():
        recorded = expected.get(name)
        if isinstance(value, dict) and isinstance(recorded, dict):
            yield from _differences(value, recorded, f"{within}{name}.")
        elif value != recorded:
            yield f"{within}{name}", value, recorded


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
