"""The arms of docs/results/starts.md on a few steps: every kind runs, and none runs twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_arms_run_once_and_make_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import start_arms as script

    out = tmp_path / "arms.jsonl"
    arms = ["drawn", "CLS weight 4, resampling", "JumpReLU, presets", "Abs-TopK, presets"]
    resampled = script.Arm(script.FULL, script.NEW | {"dead_tokens": 1500}, resample=2)
    monkeypatch.setitem(script.ARMS, "CLS weight 4, resampling", resampled)
    monkeypatch.setitem(script.SIZES, "adding", (64, 4, 100, 20))
    line = ["x", "--steps", "5", "--seeds", "0", "--out", str(out), "--arms"]
    monkeypatch.setattr(sys, "argv", [*line, *arms])
    script.main()
    rows = [json.loads(each) for each in out.read_text().splitlines()]
    assert [row["arm"] for row in rows] == arms
    assert all(0 <= row["dead"] <= 1 and row["r2_patch"] < 1 for row in rows)
    # the same five steps end elsewhere from another start
    assert len({row["r2_patch"] for row in rows}) == len(rows)
    before = out.read_bytes()
    script.main()
    assert out.read_bytes() == before
    table = capsys.readouterr().out
    assert all(f"| {arm} | " in table for arm in arms)
