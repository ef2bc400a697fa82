"""The adding study's scripts: bad input ends in one sentence and exit code 2."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")


@pytest.mark.parametrize("part", ["truth", "features"])
def test_a_part_ends_in_one_sentence(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    assert importlib.import_module("adding_parts").main([part, "--out", str(tmp_path)]) == 2
    sentence = capsys.readouterr().err
    assert "not empty" in sentence
    assert sentence.count("\n") == 1


@pytest.mark.parametrize(("code", "own"), [(2, 2), (1, 1), (3, 1)])
def test_the_study_hands_on_the_sentence_of_a_step(
    code: int,
    own: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = importlib.import_module("adding_study")
    part = tmp_path / "part.py"
    part.write_text(f"import sys; print('read\\nk is 0; expected 1.'); sys.exit({code})")
    monkeypatch.setattr(study, "PARTS_FILE", part)
    arguments = ["adding_study", "--out", str(tmp_path / "out"), "--only", "truth"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == own
    lines = capsys.readouterr().err.splitlines()
    assert "step truth failed: k is 0; expected 1." in lines


@pytest.mark.parametrize(
    ("only", "sentence"),
    [("truths", "only names truths"), ("audit", "only names steps that wait for clt_k16")],
)
def test_the_study_refuses_steps_that_cannot_be_run(
    only: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["adding_study", "--out", str(tmp_path), "--only", only])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("adding_study").main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
