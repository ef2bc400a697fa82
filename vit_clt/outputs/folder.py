"""Output folders, which hold the old result or the new one at every moment.

A result is made in a folder beside its place (`.NAME.vit-clt-new`) and takes the place of the old
folder in one step, together with what the user keeps there. A run that can be resumed works in its
place, unless a finished result is there.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from vit_clt.errors import InputError
from vit_clt.outputs.contents import NEW, Contents
from vit_clt.outputs.exchange import READY, exchange, leaves, link, move_in, remove
from vit_clt.outputs.locks import FolderLock, is_writable
from vit_clt.outputs.manifest import FINISHED_BY, MANIFEST_FILE, Manifest
from vit_clt.outputs.staging import refused, staged_file, sync

UNFINISHED = ".vit-clt-unfinished"
"""File that marks a folder in which a result is being made, until all of it is there."""
_unclosed: list[OutputFolder] = []


def check_place(
    path: Path, overwrite: bool = False, begun: str | None = None, *, resume: bool = False
) -> None:
    """Refuse an output folder by its name and what lies in it, before its command is known whole.

    What depends on the files that a command writes is left to `OutputFolder`.

    Args:
        path: the folder.
        overwrite: an earlier output may be replaced.
        begun: name of the file that a run which can be resumed writes first.
        resume: a run in the folder is gone on with.

    Raises:
        InputError: a file is in the place of the folder, or the folder holds files of the user.
    """
    _check_no_file(path)
    follows = begun is not None and os.environ.get("RANK", "0") != "0"
    if follows or overwrite or resume or not path.is_dir():
        return
    home = Path(os.path.realpath(path))
    names = {entry.name for entry in os.scandir(home)}
    is_left = home.with_name(f".{home.name}{NEW}").exists() or begun in names
    # names that begin with a dot may be what a kill has left
    if not is_left and any(not name.startswith(".") for name in names):
        raise _not_empty(path)


def _check_no_file(path: Path) -> None:
    for parent in (path, *path.parents):
        if parent.exists() and not parent.is_dir():
            raise InputError("out", f"is {path}; {parent} is a file, expected a folder.")


def _not_empty(path: Path) -> InputError:
    text = f"is {path}, which is not empty; expected a new folder."
    return InputError("out", text, remedy="overwrite")


class OutputFolder:
    """The folder that a command writes to.

    Nothing but a lock is written before `open`; `finish` puts a whole result into its place. The
    processes of one launch share the folder of a run that can be resumed: only the main one
    (rank 0) locks and changes it.

    Args:
        path: the folder; it must be absent or empty unless `overwrite`.
        files: names of the files that the command writes. A name may have a sub-folder and
            wildcards ("pages/pages-*.js").
        overwrite: replace an earlier output of the command; what its manifest does not list stays.
        begun: name of the file that a run which can be resumed writes first; None if it cannot.
        resume: go on with the run in the folder, if it has one.
        command: name of the command, for the manifest.

    Raises:
        InputError: the folder has files already, cannot be a folder, or is in use.
    """

    place: Path
    """The folder that files are written to and read from while they are made."""
    resumes: bool = False
    """Whether a run is gone on with."""
    is_finished: bool = False
    """Whether that run is finished already."""

    def __init__(
        self,
        path: Path | str,
        files: Sequence[str],
        overwrite: bool = False,
        *,
        begun: str | None = None,
        resume: bool = False,
        command: str = "",
    ):
        self.path = Path(path)
        self.files = [*files]
        self.command = command
        _check_no_file(self.path)
        self._begun, self._is_open, self._is_done = begun, False, False
        self._follows = begun is not None and os.environ.get("RANK", "0") != "0"
        self._home = Path(os.path.realpath(self.path))
        inside = not _can_be_exchanged(self._home)
        self._new = self._home / NEW if inside else self._home.with_name(f".{self._home.name}{NEW}")
        self._old = Contents(self._home, files, begun, command)
        self._made = Contents(self._new, files, begun, command)
        self._lock = FolderLock(self._home, command)
        if not self._follows:
            self._lock.take()
            _unclosed.append(self)
        try:
            with refused(self.path):
                self.place = self._chosen_place(overwrite, resume)
        except BaseException:
            self.close()
            raise

    # ---- before -----------------------------------------------------------------------------

    def _chosen_place(self, overwrite: bool, resume: bool) -> Path:
        """The folder to work in, once nothing speaks against it."""
        if not self._follows:
            self._end_what_was_killed(resume and not overwrite)
        if overwrite:
            self._check_command()
            if not self._follows:
                self._refuse_in_the_way(self._old.in_the_way())
            return self._new
        has_new_run = (self._new / UNFINISHED).is_file() and self._made.has_begun()
        if resume and has_new_run:
            self.resumes = True
            return self._new
        if resume and self._old.has_begun():
            self._check_command()
            self.resumes, self.is_finished = True, self._old.is_finished()
            return self._home
        if not self._follows:
            if has_new_run and self._made.has_weights():
                self._refuse_unfinished()
            if any(True for _ in self._old.names()):
                self._check_leftover(resume)
        return self._new if self._begun is None else self._home

    def _end_what_was_killed(self, keep: bool) -> None:
        """Bring to its end what a kill interrupted in `finish`, and remove what it left."""
        if (self._home / READY).is_dir():
            move_in(self._home, self._old.own())
        if not self._new.is_dir() or (self._new / UNFINISHED).is_file():
            return
        made = Manifest.read(self._new)
        # it may be the old folder, exchanged and not yet removed
        is_newer = made is not None and (
            not (self._home / MANIFEST_FILE).is_file()
            or (self._new / MANIFEST_FILE).stat().st_mtime_ns
            > (self._home / MANIFEST_FILE).stat().st_mtime_ns
        )
        if keep and made is not None and is_newer and not made.damage(self._new):
            self._take_its_place(self._new)
        else:
            shutil.rmtree(self._new)

    def _check_command(self) -> None:
        writer = self._old.written_by()
        if writer not in (None, "", self.command):
            raise InputError(
                "out",
                f"is {self.path}, which holds the output of {writer}; expected a new folder, or an "
                f"output of {self.command or 'this command'}.",
            )

    def _refuse_in_the_way(self, name: str | None) -> None:
        if name is not None:
            raise InputError(
                "out",
                f"is {self.path}, which holds {name}, and no manifest says that this command wrote "
                "it; expected a folder without.",
            )

    def _refuse_unfinished(self) -> None:
        raise InputError(
            "out",
            f"is {self.path}, which holds an unfinished run; --resume goes on with it, and "
            "--overwrite starts anew.",
        )

    def _check_leftover(self, resume: bool) -> None:
        """Refuse a folder with files, other than those of a run that came to nothing."""
        if resume:
            raise InputError(
                "out",
                f"is {self.path}, which holds files but no {self._begun}; expected a run to "
                "resume, or a new folder.",
            )
        if not self._old.has_begun() or self._old.users() or self._old.is_finished():
            raise _not_empty(self.path)
        self._check_command()
        if self._old.has_weights():
            self._refuse_unfinished()

    # ---- while the files are made -----------------------------------------------------------

    def open(self) -> OutputFolder:
        """Make the folder that is written to. A second call changes nothing.

        Raises:
            InputError: the folder cannot be written.
        """
        if self._is_open or self._follows:
            return self
        self._is_open = True
        try:
            goes_on = self.resumes and not self.is_finished
            if self.is_finished or (self.place == self._new and not goes_on):
                self._begin_anew()
            elif self.place == self._home:
                shutil.rmtree(self._new, ignore_errors=True)
                self._home.mkdir(parents=True, exist_ok=True)
                # the file that makes it a run goes last
                own = () if goes_on else self._old.own()
                for name in sorted(own, key=lambda name: name == self._begun):
                    remove(self._home / name)
        except OSError as error:
            raise InputError("out", f"is {self.path}, which cannot be written: {error}.") from error
        return self

    def _begin_anew(self) -> None:
        if self._new.exists():
            shutil.rmtree(self._new)
        self._new.mkdir(parents=True)
        (self._new / UNFINISHED).touch()
        if not self.is_finished:
            return
        # a finished result stays as it is until the files that tell it, beside `begun`, are made
        self.place = self._new
        told = {name for name in self._old.own() if "/" not in name} - {self._begun}
        for name in {*self._old.names()} - told:
            link(name, self._home, self._new)

    def begin(self, content: Mapping[str, Any]) -> None:
        """Open the folder, and write the file that makes it a run which can be resumed.

        Raises:
            InputError: the file cannot be written.
        """
        assert self._begun is not None
        document = {"command": self.command, FINISHED_BY: MANIFEST_FILE, **content}
        self.open().write(self._begun, json.dumps(document, indent=1, default=str) + "\n")

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
        with staged_file(self.place / name) as staging:
            staging.write_bytes(data)

    def stream(self, name: str) -> IO[str]:
        """A line-buffered text file to append to; a command that resumes goes on with it."""
        assert name in self.files, name
        path = self.place / name
        with refused(path):
            torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
            file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        if torn:  # the command was killed in the middle of a line
            file.write("\n")
        return file

    # ---- at the end -------------------------------------------------------------------------

    def finish(self) -> None:
        """Write the manifest, and put the result into its place.

        Raises:
            InputError: a file cannot be written; the earlier result is unchanged.
        """
        with refused(self.path):
            made = {name for name in leaves(self.place) if self._old.is_declared(name)}
            if self.place == self._new:
                made -= self._with_the_users()
            manifest = Manifest.of(self.place, self.command, made)
            for name in manifest.files:
                sync(self.place / name)
            with staged_file(self.place / MANIFEST_FILE) as staging:
                staging.write_text(manifest.text(), encoding="utf-8")
                sync(staging)
            if self.place == self._new:
                (self._new / UNFINISHED).unlink()
                self._take_its_place(self._new)
        self._is_done = True
        self.close()

    def _with_the_users(self) -> set[str]:
        """Link what the user keeps in the old folder into the new one; returns its names."""
        users = self._old.users()
        for name in users:
            old, new = self._home / name, self._new / name
            if not os.path.lexists(new):
                link(name, self._home, self._new)
            elif not os.path.samestat(old.lstat(), new.lstat()) and not (
                new.is_dir() and old.is_dir() and not old.is_symlink()
            ):
                self._refuse_in_the_way(name)
        return users

    def _take_its_place(self, new: Path) -> None:
        if new.parent != self._home:
            if not self._home.is_dir() or not any(self._home.iterdir()):
                os.rename(new, self._home)
                _sync_if_possible(self._home.parent)
                return
            try:
                exchange(new, self._home)
            except OSError:  # not every file system has this step
                pass
            else:
                _sync_if_possible(self._home.parent)
                shutil.rmtree(new, ignore_errors=True)
                return
        os.rename(new, self._home / READY)
        move_in(self._home, self._old.own())

    def close(self) -> None:
        """Remove what was begun, unless it can be resumed, and give the lock back."""
        if self in _unclosed:
            _unclosed.remove(self)
        is_left = self._is_open and not self._is_done and self.place == self._new
        if is_left and not self._is_worth_resuming():
            shutil.rmtree(self._new, ignore_errors=True)
        self._lock.release()

    def _is_worth_resuming(self) -> bool:
        made = {name for name in self._made.names() if name.endswith(".safetensors")}
        if self.is_finished:  # some of them are links
            made -= {*self._old.names()}
        return self._begun is not None and bool(made)


def close_outputs() -> None:
    """Close every folder that this process has not finished; a command does so at its end."""
    for folder in [*_unclosed]:
        folder.close()


atexit.register(close_outputs)


def _sync_if_possible(folder: Path) -> None:
    # the result is in its place already, whatever this says
    with suppress(OSError):
        sync(folder)


def _can_be_exchanged(home: Path) -> bool:
    """Whether another folder beside `home` can take its place without harm.

    It cannot where `home` is a mount point, where files cannot be made beside it, or where the
    current directory, which would be exchanged too, is in it.
    """
    if home.is_mount() or not is_writable(home.parent):
        return False
    try:
        return not Path.cwd().is_relative_to(home)
    except FileNotFoundError:
        return True
