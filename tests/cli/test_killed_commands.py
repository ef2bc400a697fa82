"""Real commands that are killed while they replace their own output."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from oracles.killed import contents, disk_full, events

from vit_clt.cli import main
from vit_clt.outputs.manifest import is_whole

TRAIN = ["train", "--limit", "20", "--n-features", "8", "--k", "2", "--epochs", "1"]
TRAIN += ["--batch-size", "256", "--checkpoint-every", "1", "--workers", "0"]


def check(first: Sequence[str], again: Sequence[str], named: str, n: int, tmp_path: Path) -> None:
    """Kill `again`, which overwrites `first`, at n of its changes, the last ones among them.

    Args:
        first: a command with its options.
        again: the same command with others.
        named: name of a file that is different afterwards, and the same at each repetition.
        n: number of kills.
        tmp_path: an empty folder.
    """
    before, out = tmp_path / "before", tmp_path / "out"
    assert main([*first, "--out", str(before)]) == 0
    (before / "notes.txt").write_text("mine")
    shutil.copytree(before, out)
    replace = [*again, "--out", str(out), "--overwrite"]
    with events(None) as counted:
        assert main(replace) == 0
    old, new = contents(before), contents(out)
    assert old.keys() == new.keys()
    assert old[named] != new[named]
    # the exchange of the folders is followed by the removal of the old one alone
    exchanged = counted.seen - len(old) - 3
    chosen = {*range(1, exchanged, exchanged // n), exchanged, counted.seen - 1}
    for at in sorted(chosen):
        shutil.rmtree(out)
        shutil.copytree(before, out)
        with events(at):
            main(replace)
        found = contents(out)
        assert found == old or (is_whole(out, first[0], None) and found[named] == new[named]), at
        assert found["notes.txt"] == b"mine"
    shutil.rmtree(out)
    shutil.copytree(before, out)
    with events(exchanged // 2, disk_full):
        assert main(replace) == 2
    assert contents(out) == old
    assert main(replace) == 0
    assert contents(out)[named] == new[named]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "out"]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_a_study(digits_clt: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(digits_clt, other)
    place = tmp_path / "place"
    place.mkdir()
    check(
        ["weights", "--clt", str(digits_clt)],
        ["weights", "--clt", str(other)],
        "metrics.json",
        4,
        place,
    )


def test_a_training(tmp_path: Path) -> None:
    check(TRAIN, [*TRAIN, "--seed", "1"], "model.safetensors", 1, tmp_path)
