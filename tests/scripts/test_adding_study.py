"""The adding study: each step runs once, after what it reads; its parts refuse bad input."""

from __future__ import annotations

import importlib
import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
STAND_IN = """#!/bin/sh
for out; do :; done  # the folder is the last argument
[ $out = "out/adding/$(cat broken)" ] && echo read && echo "k is 0; expected 1." && exit 2
mkdir -p $out && echo "$@" >> calls && touch $out/metrics.json
"""
"""In Python's place: writes down how it was called and finishes the step."""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder to run the study in, with a stand-in for Python; `broken` names a step to fail."""
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "broken").touch()
    return tmp_path


def make(folder: Path) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Run all steps that can be run; returns what was printed, and the steps' calls in order."""
    calls = folder / "calls"
    calls.write_text("")
    command = ["make", "-k", "-j2", "-f", SCRIPTS / "adding.mk", f"PYTHON={folder / 'python'}"]
    # not as a part of the make that runs the tests
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    return done, [line.split() for line in calls.read_text().splitlines()]


def test_every_step_runs_once(study: Path) -> None:
    done, calls = make(study)
    assert done.returncode == 0
    assert "34 of 34 steps are done" in done.stdout.splitlines()[-1]
    folders = {call[-1] for call in calls}
    assert len(folders) == len(calls) == 34
    assert {str(log.relative_to(study)) for log in study.glob("out/adding/*.log")} == {
        f"{folder}.log" for folder in folders
    }
    assert make(study)[1] == []


@pytest.mark.parametrize(("name", "readers"), [("clt_k16", 8), ("clt_k8", 6), ("plt_k4", 1)])
def test_a_step_that_fails_says_why_and_holds_back_what_reads_it(
    study: Path, name: str, readers: int
) -> None:
    (study / "broken").write_text(name)
    done, before = make(study)
    assert done.returncode == 2
    assert f"step {name} failed: k is 0; expected 1." in done.stderr.splitlines()
    (study / "broken").write_text("")
    done, after = make(study)
    assert done.returncode == 0
    assert (len(before), len(after)) == (33 - readers, 1 + readers)
    assert after[0][-1] == f"out/adding/{name}"
    assert all(f"out/adding/{name}" in call for call in after)


@pytest.mark.parametrize("part", ["truth", "features"])
def test_a_part_ends_in_one_sentence(
    part: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    (tmp_path / "mine.txt").touch()
    assert importlib.import_module("adding_parts").main([part, "--out", str(tmp_path)]) == 2
    sentence = capsys.readouterr().err
    assert "not empty" in sentence
    assert sentence.count("\n") == 1
