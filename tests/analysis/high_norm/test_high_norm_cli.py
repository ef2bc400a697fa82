"""`vit-clt high-norm`, with a CLT and without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_clt.cli import main


def test_with_a_clt(digits_clt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--clt", str(digits_clt), "--data", "digits", "--limit", "30", "--multiple", "1"]
    assert main(["high-norm", *args, "--deviations", "2", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "high-norm: norm of the residual stream after the block above 1 times" in printed
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    names = {metric["name"] for metric in document["metrics"]}
    assert {"fvu_ordinary_layer_0", "features_above_layer_0", "l0_patch_layer_0"} <= names
    assert document["context"]["fit"]
    assert (tmp_path / "out" / "map.csv").is_file()


def test_without_a_clt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["high-norm", "--model", "digits", "--limit", "20", "--out", str(out)]) == 0
    assert "no CLT" in capsys.readouterr().out
    assert "fvu" not in (out / "high_norm.csv").read_text().splitlines()[0]


def test_bad_rules_are_refused(refused: Callable[..., str]) -> None:
    assert refused("high-norm", "--deviations", "-1") == (
        "--deviations is -1; expected a number of at least 0."
    )
    assert (
        refused("high-norm", "--multiple", "nan") == "--multiple is nan; expected a finite number."
    )
