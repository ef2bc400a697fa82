"""Output folders: the old result or the new one, whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from assertions import one_sentence
from oracles.killed import contents, disk_full, events

from vit_clt.errors import InputError
from vit_clt.inputs import read_json
from vit_clt.outputs import OutputFolder
from vit_clt.outputs import folder as module
from vit_clt.outputs.staging import staged_folder

FILES = ["metrics.json", "table.csv"]
STUDY_FILES = ["a.csv", "pages/page-*.js", "metrics.json"]
LEFT = (".vit-clt-new", ".vit-clt-ready", ".lock")


def a_study(out: Path, content: str, *, overwrite: bool = False) -> None:
    """A command that is done again from the beginning; "old" has more pages than "new"."""
    folder = OutputFolder(out, STUDY_FILES, overwrite, command="study").open()
    folder.write("a.csv", content)
    for page in range(3 if content == "old" else 1):
        folder.write(f"pages/page-{page:03}.js", content)
    folder.write("metrics.json", json.dumps({"context": {"command": "study"}, "is": content}))
    folder.finish()


def a_training(
    out: Path, content: str, *, overwrite: bool = False, resume: bool = False
) -> OutputFolder:
    """A command that can be resumed."""
    files = ["run.json", "log.jsonl", "model.safetensors", "metrics.json"]
    folder = OutputFolder(
        out, files, overwrite, begun="run.json", resume=resume, command="training"
    )
    if folder.is_finished:
        folder.close()
        return folder
    if not folder.resumes:
        folder.begin({"of": content})
    folder.open()
    content = read_json(folder.place / "run.json")["of"]
    with folder.stream("log.jsonl") as log:
        if folder.place.joinpath("log.jsonl").stat().st_size == 0:
            log.write(f"{content}\n")
    checkpoint = folder.place / "checkpoints/step-00000001"
    if not checkpoint.is_dir():
        with staged_folder(checkpoint) as staging:
            (staging / "model.safetensors").write_text(content)
    folder.write("model.safetensors", content)
    folder.write("metrics.json", json.dumps({"context": {"command": "training"}, "is": content}))
    folder.finish()
    return folder


EVERY_WAY = [
    ("exchange", a_study),
    ("exchange", a_training),
    ("no exchange", a_study),
    ("inside", a_study),
]
"""How a folder takes the place of another, and a command."""


def the_users(out: Path) -> None:
    """What a user keeps in an output folder, some of it under names like ours."""
    (out / "pages").mkdir(parents=True, exist_ok=True)
    for name in ("notes.txt", "a.csv.bak", "pages/page-007.js", "pages/mine.js"):
        (out / name).write_text("mine")
    (out / "empty").mkdir()
    outside = out.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "a.csv").write_text("elsewhere")
    (out / "data").symlink_to(outside)


def shown(out: Path) -> dict[str, Any] | None:
    """What is in a folder, but for what the next start removes."""
    found = contents(out)
    if found is None:
        return None
    return {name: v for name, v in found.items() if name.split("/")[0] not in LEFT}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a folder takes the place of another."""

    def refuse(one: Path, other: Path) -> None:
        raise OSError(22, "Invalid argument")

    if request.param == "no exchange":
        monkeypatch.setattr(module, "exchange", refuse)
    if request.param == "inside":
        monkeypatch.setattr(module, "_can_be_exchanged", lambda home: False)
    return request.param


# ---- a kill at every change, and a full disk ----------------------------------------------------


def made(command: Callable[..., Any], place: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """An old result with what a user keeps there; its contents, and those of the new one."""
    old, new = place / "old", place / "new"
    command(old, "old")
    the_users(old)
    shutil.copytree(old, new, symlinks=True)
    command(new, "new", overwrite=True)
    expected = contents(new)
    assert expected != contents(old)
    shutil.rmtree(new)
    return old, contents(old), expected


@pytest.mark.parametrize(
    ("error", "system", "command"),
    [(None, *way) for way in EVERY_WAY] + [(disk_full, *way) for way in EVERY_WAY[:2]],
    indirect=["system"],
)
def test_an_overwritten_folder_is_the_old_result_or_the_new_one(
    command: Callable[..., Any], error: Any, system: str, tmp_path: Path
) -> None:
    source, old, new = made(command, tmp_path)
    outside = contents(tmp_path / "outside")
    out = tmp_path / "out"
    ends = set()
    at = 0
    while True:
        shutil.copytree(source, out, symlinks=True)
        failed = None
        with events(at, *([error] if error else [])) as counted:
            try:
                command(out, "new", overwrite=True)
            except InputError as refused:
                failed = str(refused)
        if system == "exchange":
            assert shown(out) in ((old,) if failed else (old, new)), at
        assert failed is None or "No space left" in failed
        # the next start ends what was interrupted
        OutputFolder(out, [], True, command=command.__name__.removeprefix("a_")).close()
        assert shown(out) in (old, new), at
        ends.add("old" if shown(out) == old else "new")
        command(out, "new", overwrite=True)
        assert contents(out) == new, at
        assert sorted(p.name for p in tmp_path.iterdir()) == ["old", "out", "outside"], at
        assert contents(tmp_path / "outside") == outside
        shutil.rmtree(out)
        if counted.seen <= at:
            break
        at += 1
    assert ends == {"old", "new"}
    assert at > 20


@pytest.mark.parametrize(("system", "command"), EVERY_WAY[1:], indirect=["system"])
def test_a_killed_new_run_is_repeated_or_resumed(
    command: Callable[..., Any], system: str, tmp_path: Path
) -> None:
    command(tmp_path / "whole", "new")
    new = contents(tmp_path / "whole")
    out = tmp_path / "out"
    at, resumed = 0, 0
    while True:
        with events(at) as counted:
            command(out, "new")
        refused = ""
        try:
            command(out, "new")
        except InputError as error:
            refused = str(error)
        if "--resume goes on with it, and --overwrite starts anew" in refused:
            resumed += 1
            command(out, "new", resume=True)
        elif refused:
            assert "not empty" in refused
        assert contents(out) == new, at
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"], at
        shutil.rmtree(out)
        if counted.seen <= at:
            break
        at += 1
    assert (resumed > 0) == (command is a_training)


@pytest.mark.parametrize("system", ["exchange", "inside"], indirect=True)
def test_a_replacement_that_was_killed_can_be_resumed(system: str, tmp_path: Path) -> None:
    source, old, new = made(a_training, tmp_path)
    out = tmp_path / "out"
    ends = set()
    at = 0
    while True:
        shutil.copytree(source, out, symlinks=True)
        with events(at) as counted:
            a_training(out, "new", overwrite=True)
        a_training(out, "another", resume=True)
        ends.add("old" if shown(out) == old else "new")
        assert shown(out) in (old, new), at
        shutil.rmtree(out)
        for left in tmp_path.glob(".out*"):
            shutil.rmtree(left)
        if counted.seen <= at:
            break
        at += 1
    assert ends == {"old", "new"}


# ---- what is taken, and what is refused ---------------------------------------------------------


@pytest.mark.parametrize("state", ["absent", "nested", "empty"])
def test_absent_or_empty_folder_is_taken(tmp_path: Path, state: str) -> None:
    path = {"absent": tmp_path / "out", "nested": tmp_path / "a/b", "empty": tmp_path}[state]
    folder = OutputFolder(path, FILES)
    assert state == "empty" or not path.exists(), "nothing is made before it is opened"
    folder.open().write("metrics.json", "{}\n")
    folder.finish()
    assert sorted(f.name for f in path.iterdir()) == ["manifest.json", "metrics.json"]
    assert (path / "metrics.json").read_text() == "{}\n"


def test_what_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "a/b", FILES)
    folder.open().write("metrics.json", "{}\n")
    folder.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["metrics.json", "notes.txt", ".hidden"])
def test_occupied_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        OutputFolder(tmp_path, FILES)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("below", ["", "out", "a/b"])
def test_folder_at_or_beneath_a_file_is_refused(
    tmp_path: Path, below: str, overwrite: bool
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        OutputFolder(file / below, FILES, overwrite)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "folder", "symbolic link", "link above"])
def test_what_no_manifest_lists_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    a_study(out, "old")
    outside.mkdir()
    (outside / "page-000.js").write_text("mine")
    (outside / "a.csv").write_text("mine")
    if kind in ("file", "folder"):
        (out / "manifest.json").unlink()
        (out / "metrics.json").unlink()
    if kind == "folder":
        (out / "a.csv").unlink()
        (out / "a.csv").mkdir()
    if kind == "symbolic link":
        (out / "a.csv").unlink()
        (out / "a.csv").symlink_to(outside / "a.csv")
    if kind == "link above":
        shutil.rmtree(out / "pages")
        (out / "pages").symlink_to(outside)
    before, beyond = contents(out), contents(outside)
    with pytest.raises(InputError, match="no manifest says that this command wrote it") as error:
        OutputFolder(out, STUDY_FILES, True, command="study")  # before anything is computed
    one_sentence(error)
    assert contents(out) == before
    assert contents(outside) == beyond


def test_an_output_of_another_command_is_not_overwritten(tmp_path: Path) -> None:
    a_training(tmp_path / "out", "old")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="holds the output of training; expected a new folder"):
        a_study(tmp_path / "out", "new", overwrite=True)
    assert contents(tmp_path / "out") == before


def test_a_folder_without_a_manifest_can_be_overwritten(tmp_path: Path) -> None:
    a_study(tmp_path / "out", "old")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    a_study(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert sorted(p.name for p in (tmp_path / "out/pages").iterdir()) == ["page-000.js"]


def test_out_may_be_a_link_and_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    a_study(tmp_path / "link", "old")
    monkeypatch.chdir(tmp_path / "real")
    (Path("notes.txt")).write_text("mine")
    a_study(Path("."), "new", overwrite=True)
    assert Path("a.csv").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link/notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


# ---- finished -----------------------------------------------------------------------------------


def emptied(path: Path) -> None:
    path.write_text("")


def of_another(path: Path) -> None:
    path.write_text('{"context": {"command": "audit"}}')


def changed(path: Path) -> None:
    path.write_text(path.read_text()[::-1])


@pytest.mark.parametrize("is_old", [False, True], ids=["", "without a manifest"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", Path.unlink),
        ("metrics.json", emptied),
        ("metrics.json", of_another),
        ("model.safetensors", changed),
    ],
)
def test_what_is_damaged_is_not_finished(
    name: str, damage: Callable[[Path], None], is_old: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    a_training(out, "new")
    whole = contents(out)
    assert a_training(out, "another", resume=True).is_finished
    if is_old:
        (out / "manifest.json").unlink()
        (out / "run.json").write_text('{"command": "training", "of": "new"}')
        assert a_training(out, "another", resume=True).is_finished
    damage(out / name)
    if is_old and damage is changed:
        return  # nothing tells
    if is_old and damage is of_another:
        with pytest.raises(InputError, match="holds the output of audit"):
            a_training(out, "new", resume=True)
        return
    assert not a_training(out, "another", resume=True).is_finished
    mended = contents(out)
    assert mended.keys() == whole.keys()
    assert all(mended[file] == whole[file] for file in ("model.safetensors", "metrics.json"))


def test_what_is_resumed_is_of_this_command(tmp_path: Path) -> None:
    a_training(tmp_path / "out", "new")
    with pytest.raises(InputError, match="holds the output of training"):
        OutputFolder(tmp_path / "out", ["run.json"], begun="run.json", resume=True, command="audit")


# ---- two processes ------------------------------------------------------------------------------

_HOLDS = """
import sys, time
from vit_clt.outputs import OutputFolder
folder = OutputFolder(sys.argv[1], ["a.csv"], command="other")
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", _HOLDS, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {other.pid} on .* writes to") as error:
            a_study(out, "new")
        assert "vit-clt other" in str(error.value)
        assert not out.exists()
        other.kill()
    a_study(out, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("holder", "is_held"),
    [
        ("", False),
        ({"host": "HERE", "pid": 2**22 + 1, "started": 1}, False),
        ({"host": "HERE", "pid": "PARENT", "started": -1}, False),
        ({"host": "elsewhere", "pid": 1, "started": 1}, True),
    ],
    ids=["cut short", "gone", "number used again", "on another host"],
)
def test_a_lock_that_a_kill_left(holder: Any, is_held: bool, tmp_path: Path) -> None:
    if holder:
        names = {"HERE": socket.gethostname(), "PARENT": os.getppid()}
        holder = {name: names.get(value, value) for name, value in holder.items()}
    lock = tmp_path / ".out.lock"
    lock.write_text(json.dumps(holder | {"command": "vit-clt train"}) if holder else "")
    if is_held:
        with pytest.raises(InputError, match=f"process 1 on elsewhere .*remove {lock}"):
            a_study(tmp_path / "out", "new")
    else:
        a_study(tmp_path / "out", "new")
        assert not lock.exists()


def test_the_other_processes_of_a_launch_change_nothing(tmp_path: Path, monkeypatch) -> None:
    files = ["run.json", "metrics.json"]
    main = OutputFolder(tmp_path / "out", files, begun="run.json", command="train")
    main.begin({})
    monkeypatch.setenv("RANK", "1")
    other = OutputFolder(tmp_path / "out", files, begun="run.json", command="train")
    assert other.open().place == main.place
    other.close()
    assert (tmp_path / ".out.lock").exists()
    main.finish()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.json", "run.json"]


# ---- single files -------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["replace", "write_bytes"])
def test_failed_write_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    folder = OutputFolder(tmp_path / "out", FILES).open()
    folder.write("metrics.json", "earlier")
    before = contents(folder.place)

    def full_disk(path: Path, *args: object, **kwargs: object) -> None:
        if broken == "write_bytes":
            path.write_text("part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if broken == "replace" else Path, broken, full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        folder.write("metrics.json", "later")
    assert contents(folder.place) == before


def test_write_replaces_a_file_whole(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, FILES).open()
    for text in ("a much longer first text ŷ", "short"):
        folder.write("metrics.json", text)
        assert (folder.place / "metrics.json").read_text(encoding="utf-8") == text


def test_stream_is_readable_line_by_line_while_it_grows(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, FILES).open()
    with folder.stream("table.csv") as stream:
        for line in ("a\n", "b\n"):
            stream.write(line)
            assert (folder.place / "table.csv").read_text().endswith(line)


@pytest.mark.parametrize("method", ["write", "stream"])
def test_only_announced_files_are_written(tmp_path: Path, method: str) -> None:
    folder = OutputFolder(tmp_path, FILES).open()
    with pytest.raises(AssertionError, match=r"other\.txt"):
        getattr(folder, method)("other.txt", *(["text"] if method == "write" else []))
