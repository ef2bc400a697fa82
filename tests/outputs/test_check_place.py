"""What is refused of an output folder before its command is known whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_clt import InputError
from vit_clt.outputs.folder import NEW, check_place


@pytest.fixture
def full(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()
    return tmp_path / "out"


def test_a_folder_with_files_is_refused(full: Path) -> None:
    with pytest.raises(InputError, match="is not empty; expected a new folder, or overwrite") as e:
        check_place(full)
    assert e.value.field == "out"
    with pytest.raises(InputError, match="is not empty"):
        check_place(full, begun="run.json")


def test_what_its_command_may_take_passes(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_place(tmp_path / "absent" / "deeper")
    check_place(full, overwrite=True)
    check_place(full, begun="run.json", resume=True)
    with monkeypatch.context() as other_process:
        other_process.setenv("RANK", "1")
        check_place(full, begun="run.json")
    (full / "run.json").touch()
    check_place(full, begun="run.json")
    # a run that was killed has left a folder beside this one
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    (tmp_path / f".other{NEW}").mkdir()
    check_place(tmp_path / "other")


def test_what_a_kill_may_have_left_passes(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    check_place(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_refused(full: Path) -> None:
    for place in (full / "notes", full / "notes" / "out"):
        with pytest.raises(InputError, match=r"notes is a file, expected a folder\."):
            check_place(place, overwrite=True)
