"""What is written beside its place and moved there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from assertions import one_sentence

from vit_clt.errors import InputError
from vit_clt.outputs.staging import (
    STAGING,
    remove_unfinished,
    staged_file,
    staged_files,
    staged_folder,
)


def write_file(folder: Path, content: str, then: Callable[[], object] = lambda: None) -> None:
    with staged_file(folder / "a.txt") as path:
        path.write_text(content)
        then()


def write_files(folder: Path, content: str, then: Callable[[], object] = lambda: None) -> None:
    with staged_files(folder, ["a.txt", "b.txt"]) as staging:
        for name in ("a.txt", "b.txt"):
            (staging / name).write_text(content)
        then()


def write_folder(folder: Path, content: str, then: Callable[[], object] = lambda: None) -> None:
    with staged_folder(folder / "whole") as staging:
        (staging / "a.txt").write_text(content)
        then()


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


writers = pytest.mark.parametrize("write", [write_file, write_files, write_folder])


@writers
def test_nothing_is_in_its_place_before_all_is_written(write, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    write(folder, "earlier")
    before = contents(folder)
    during: list[dict[str, str]] = []
    write(folder, "later", lambda: during.append(contents(folder)))
    assert before.items() <= during[0].items()
    assert set(contents(folder)) == set(before)
    assert set(contents(folder).values()) == {"later"}


@writers
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt(), KeyError(1)])
def test_a_write_that_fails_leaves_what_was_there(write, error, tmp_path: Path) -> None:
    def fail() -> None:
        raise error

    write(tmp_path, "earlier")
    before = contents(tmp_path)
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as found:
        write(tmp_path, "later", fail)
    if isinstance(error, OSError):
        assert "cannot be written: [Errno 28] No space left." in one_sentence(found)
    assert contents(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@writers
def test_a_move_that_fails_leaves_nothing_beside(write, tmp_path: Path, monkeypatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        write(tmp_path, "new")
    assert list(tmp_path.iterdir()) == []


def test_files_take_their_places_in_the_order_named(tmp_path: Path, monkeypatch) -> None:
    moved: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    with staged_files(tmp_path, ["z", "a", "m"]) as staging:
        for name in ("a", "m", "z", "unnamed"):
            (staging / name).touch()
    assert moved == ["z", "a", "m"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "m", "z"]


def test_a_folder_is_on_the_disk_before_it_is_moved(tmp_path: Path, monkeypatch) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def moved(source: Path, target: Path) -> None:
        happened.append("moved")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    with staged_folder(tmp_path / "whole") as staging:
        for name in ("b", "a"):
            (staging / name).touch()
    assert happened == ["a", "b", "moved", tmp_path.name]


def test_only_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{STAGING}abc").mkdir()
    (tmp_path / f"{STAGING}abc" / "half").touch()
    (tmp_path / "mine").mkdir()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    remove_unfinished(tmp_path / "absent")
