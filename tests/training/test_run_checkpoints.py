"""Checkpoints: bit-exact, whole or not there, and what damage or a kill leaves."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from assertions import one_sentence
from safetensors import SafetensorError
from torch import Tensor

from vit_clt import InputError
from vit_clt.training import checkpoints as module
from vit_clt.training.checkpoints import Checkpoints

Tensors = dict[str, dict[str, Tensor]]


def content(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, 4, generator=generator)
    weights[0, 0], weights[0, 1] = float("nan"), -0.0
    return {
        "model": {"W_enc.0": weights, "b": weights.T, "half": weights.bfloat16()},
        "optimizer": {"W_enc.0/exp_avg": weights[1:, ::2], "W_enc.0/step": torch.tensor(7.0)},
        "run": {"silent": torch.arange(5), "codes": weights.view(torch.uint8)},
    }


def state(step: int) -> dict:
    return {"step": step, "lr": 0.1 + 0.2, "skipped": [3, 9], "none": None, "name": "α"}


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, content(step), state(step))


def assert_whole(checkpoints: Checkpoints, step: int) -> None:
    """The newest is that of `step`, to the bit."""
    found, _ = checkpoints.newest()
    assert found is not None
    assert (found.step, found.state) == (step, state(step))
    expected = content(step)
    assert found.tensors.keys() == expected.keys()
    for name, tensors in expected.items():
        assert found.tensors[name].keys() == tensors.keys()
        for key, value in tensors.items():
            have = found.tensors[name][key]
            assert (have.dtype, have.shape) == (value.dtype, value.shape)
            bits = [v.contiguous().flatten().view(torch.uint8) for v in (have, value)]
            assert torch.equal(*bits)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# ---- whole ------------------------------------------------------------------------------------


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a" / "checkpoints")
    assert checkpoints.newest() == (None, [])
    assert checkpoints.steps() == []
    save(checkpoints, 500)
    assert_whole(Checkpoints(str(tmp_path / "a" / "checkpoints")), 500)
    assert checkpoints.newest()[1] == []


def test_the_layout_on_disk_is_what_sha256sum_reads(tmp_path):
    save(Checkpoints(tmp_path), 12)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "step-00000012"
    names = ["model.safetensors", "optimizer.safetensors", "run.safetensors", "state.json"]
    assert sorted(f.name for f in folder.iterdir()) == ["SHA256SUMS", *names]
    assert json.loads((folder / "state.json").read_text()) == state(12)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.split() == [word for name in names for word in (f"{name}:", "OK")]


@pytest.mark.parametrize(("keep", "left"), [(1, [40]), (2, [30, 40]), (9, [10, 20, 30, 40])])
def test_the_newest_are_kept(tmp_path, keep, left):
    checkpoints = Checkpoints(tmp_path, keep=keep)
    save(checkpoints, 10, 20, 30, 40)
    assert checkpoints.steps() == left
    assert len(list(tmp_path.iterdir())) == len(left)
    assert_whole(checkpoints, 40)


def test_steps_are_ordered_as_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 99_999_999, 100_000_000)
    assert checkpoints.steps() == [99_999_999, 100_000_000]
    assert_whole(checkpoints, 100_000_000)


def test_a_step_is_written_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, content(1), state(1))
    (tmp_path / "step-00000010" / "left-by-another.safetensors").touch()
    save(checkpoints, 10)
    assert_whole(checkpoints, 10)
    assert len(list((tmp_path / "step-00000010").iterdir())) == 5


# ---- damaged ----------------------------------------------------------------------------------


def truncated(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flipped(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def unhashed(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()


def half_hashed(folder: Path) -> None:
    path = folder / "SHA256SUMS"
    path.write_text(path.read_text()[:100])


def gone(folder: Path) -> None:
    (folder / "run.safetensors").unlink()


def rehash(folder: Path, *left_out: str) -> None:
    names = sorted(f.name for f in folder.iterdir() if f.name not in ("SHA256SUMS", *left_out))
    command = ["sha256sum", *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    (folder / "SHA256SUMS").write_text(done.stdout)


def not_json(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 20,')
    rehash(folder)


def not_tensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not tensors")
    rehash(folder)


def unlisted(folder: Path) -> None:
    rehash(folder, "state.json")


def elsewhere(folder: Path) -> None:
    (folder.parent / "mine.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    line = subprocess.run(
        ["sha256sum", "../mine.safetensors"], cwd=folder, capture_output=True, text=True, check=True
    )
    sums = folder / "SHA256SUMS"
    sums.write_text(sums.read_text() + line.stdout)


def a_folder(folder: Path) -> None:
    (folder / "run.safetensors").unlink()
    (folder / "run.safetensors").mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (elsewhere, "SHA256SUMS lists ../mine.safetensors, which is in another folder"),
        (a_folder, "run.safetensors cannot be read: it is a folder"),
        (truncated, "optimizer.safetensors does not match its hash"),
        (flipped, "model.safetensors does not match its hash"),
        (unhashed, "SHA256SUMS"),
        (half_hashed, ""),
        (gone, "run.safetensors"),
        (not_json, ""),
        (not_tensors, ""),
        (unlisted, "SHA256SUMS does not list state.json"),
    ],
)
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path, damage, reason):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10, 20)
    damage(tmp_path / "step-00000020")
    _, (why,) = checkpoints.newest()
    assert why.startswith("the checkpoint at step 20 is damaged (")
    assert reason in why
    assert "\n" not in why
    assert_whole(checkpoints, 10)
    save(checkpoints, 20)
    assert_whole(checkpoints, 20)
    assert checkpoints.newest()[1] == []


def test_all_damaged_is_none_with_every_reason_newest_first(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10, 20)
    flipped(tmp_path / "step-00000010")
    unhashed(tmp_path / "step-00000020")
    found, torn = checkpoints.newest()
    assert found is None
    assert [reason.split()[4] for reason in torn] == ["20", "10"]


def test_what_a_kill_left_is_harmless(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)
    for step in (20, 30):
        part = tmp_path / f".step-000000{step}.part"
        shutil.copytree(tmp_path / "step-00000010", part)
        (part / "half.safetensors").write_text("half")
    assert checkpoints.steps() == [10]
    assert_whole(checkpoints, 10)
    save(checkpoints, 20)
    assert_whole(checkpoints, 20)
    assert not (tmp_path / ".step-00000020.part").exists()
    assert not (tmp_path / "step-00000020" / "half.safetensors").exists()


# ---- writes that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["model", "optimizer", "run"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: full")]
)
def test_a_full_disk_leaves_the_earlier_ones(tmp_path, monkeypatch, failing, error):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 10)
    before, write = bytes_of(tmp_path), module.save_file

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        if path.stem == failing:
            path.write_bytes(b"half")
            raise error
        write(tensors, path)

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(InputError) as found:
        save(checkpoints, 20)
    assert one_sentence(found) == (
        f"the checkpoint at step 20 cannot be written to {tmp_path}: {error}; "
        "the one at step 10 is untouched."
    )
    assert bytes_of(tmp_path) == before
    assert [f.name for f in tmp_path.iterdir()] == ["step-00000010"]
    monkeypatch.undo()
    save(checkpoints, 20)
    assert_whole(checkpoints, 20)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write anywhere: be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_written_to_leaves_the_earlier_ones():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = Checkpoints(folder)
        save(checkpoints, 10)
        before = bytes_of(folder)
        folder.chmod(0o555)
        with without_privileges(), pytest.raises(InputError) as error:
            save(checkpoints, 20)
        assert "Permission denied" in one_sentence(error)
        assert str(error.value).endswith("; the one at step 10 is untouched.")
        assert bytes_of(folder) == before
        folder.chmod(0o755)


def test_a_file_in_the_folder_s_place_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError) as error:
        save(Checkpoints(tmp_path / "taken"), 10)
    assert one_sentence(error).endswith("; there is none before.")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_state_that_json_does_not_know_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)
    with pytest.raises(InputError) as error:
        checkpoints.save(20, content(), {"loss": float("nan")})
    assert "the checkpoint at step 20 cannot be written" in one_sentence(error)
    assert [f.name for f in tmp_path.iterdir()] == ["step-00000010"]


# ---- kills --------------------------------------------------------------------------------------


def killed_when(place: str, name: str, calls: int) -> Callable[[Path], None]:
    """Save 20, killed at the beginning of the given call of a function that saving uses."""

    def run(folder: Path) -> None:
        owner = {"os": os, "shutil": shutil, "module": module}[place]
        function, left = getattr(owner, name), [calls]

        def counted(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(owner, name, counted)
        save(Checkpoints(folder, keep=1), 20)

    return run


# newer Pythons warn of forks in a process with threads
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("moment", "newest"),
    [
        (("module", "save_file", 1), 10),
        (("module", "save_file", 2), 10),
        (("module", "file_hash", 3), 10),
        (("os", "fsync", 2), 10),
        (("os", "replace", 1), 10),
        (("os", "fsync", 6), 20),  # the folder's, once the rename is done
        (("shutil", "rmtree", 2), 20),  # that of step 10
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_a_kill_at_any_moment_leaves_a_whole_newest(tmp_path, moment, newest):
    save(Checkpoints(tmp_path), 10)
    process = multiprocessing.get_context("fork").Process(
        target=killed_when(*moment), args=(tmp_path,)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert_whole(checkpoints, newest)
    assert checkpoints.newest()[1] == []
    save(checkpoints, 20)
    assert [f.name for f in tmp_path.iterdir()] == ["step-00000020"]
    assert_whole(checkpoints, 20)


# ---- removal ------------------------------------------------------------------------------------


def test_removal_takes_checkpoints_and_nothing_else(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    checkpoints.remove()  # nothing there
    save(checkpoints, 10, 20)
    (folder / ".step-00000030.part").mkdir()
    mine = ["notes.txt", "step-7", "step-00000010-copy", "my-step-00000010", "model.safetensors"]
    for name in mine:
        (folder / name).mkdir()
    checkpoints.remove()
    assert sorted(f.name for f in folder.iterdir()) == sorted(mine)
    for name in mine:
        (folder / name).rmdir()
    save(checkpoints, 10)
    checkpoints.remove()
    assert not folder.exists()
    assert tmp_path.exists()
