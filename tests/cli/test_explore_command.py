"""`vit-clt explore`: what it writes, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vit_clt.analysis.viewer.encoding import script_value
from vit_clt.cli import main


def test_command(digits_clt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    args = ["explore", "--clt", str(digits_clt), "--limit", "20", "--count", "2"]
    assert main([*args, "--graphs", "1", "--effect-images", "4", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"open {out / 'index.html'} in a browser" in printed
    document = script_value((out / "data.js").read_text())
    # those that are steered have a page too
    assert all(2 <= n <= 2 + 6 for n in document["with_page"].values())
    [row] = document["with_graph"]
    assert (out / "graphs" / f"graph-{row:05}.js").is_file()
    context = json.loads((out / "metrics.json").read_text())["context"]
    assert context["graphs_of_images"] == [row]
    assert context["verdict"] is None


def test_an_audit_that_is_not_there_is_refused_first(
    digits_clt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    args = ["explore", "--clt", str(digits_clt), "--audit", str(tmp_path), "--out", str(out)]
    assert main(args) == 2
    assert "holds no metrics.json" in capsys.readouterr().err
    assert not out.exists()
