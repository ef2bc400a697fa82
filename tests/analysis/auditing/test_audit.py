"""`vit-clt audit`, from the plan to the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from builders import random_clt

from vit_clt import CLTConfig, CrossLayerTranscoder
from vit_clt.analysis.auditing.study import Audit
from vit_clt.analysis.reporting.study import study_files
from vit_clt.cli import main
from vit_clt.hooks import HookedViT

TRAINING = ["--train-limit", "30", "--epochs", "1", "--batch-size", "256"]


@pytest.fixture(scope="module")
def folders(
    digits_vit: HookedViT, digits_clt: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A CLT, another seed of it, and a per-layer transcoder, untrained but saved as trained."""
    root = tmp_path_factory.mktemp("audit")
    random_clt(digits_vit, seed=1).save_pretrained(root / "other")
    config = CLTConfig(8, 64, 24, random_clt(digits_vit).config.sparsifier, cross_layer=False)
    CrossLayerTranscoder(config).save_pretrained(root / "per_layer")
    return {"own": digits_clt, "other": root / "other", "per_layer": root / "per_layer"}


def test_the_plan_is_printed_and_nothing_is_written(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["audit", "--clt", str(folders["own"]), "--limit", "8", *TRAINING]
    assert main([*args, "--plan", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("features a layer" in line for line in lines) == 10
    assert lines[-1].startswith("to train: 10, on digits (train) (30 images), about ")
    assert not (tmp_path / "out").exists()


def test_a_whole_audit(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["audit", "--clt", str(folders["own"]), "--limit", "12", *TRAINING, "--keep", "2"]
    args += ["--per-layer", str(folders["per_layer"]), "--variants", str(folders["other"])]
    assert main([*args, "--templates", "single", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "to train: 1, on digits (train) (30 images)" in printed
    document = json.loads((out / "metrics.json").read_text())
    context, metrics = document["context"], {m["name"]: m for m in document["metrics"]}
    assert context["verdict"] in ("supported", "mixed", "unsupported")
    held = [metrics[f"condition_{n}"]["value"] for n in ("causes", "best_sets", "fill")]
    expected = {0: "unsupported", 3: "supported"}.get(sum(held), "mixed")
    assert context["verdict"] == expected
    assert f"verdict: {expected}" in printed
    for name, verdict in zip(("reads", "acts"), context["claims"], strict=True):
        parts = [
            m["value"]
            for m in metrics.values()
            if m["unit"] == "count" and m["name"].startswith(f"{name}_")
        ]
        assert len(parts) == {"reads": 5, "acts": 4}[name]
        assert verdict.startswith(f"{name}: {'supported' if all(parts) else 'unsupported ('}")
        assert verdict in printed.splitlines()
    assert context["left_out"] == {}
    assert context["rivals"] == ["shuffled weights"]
    page = (out / "audit.html").read_text()
    for code in (*(f"D{i}" for i in range(1, 9)), "D10", "D11", "D12", "D13"):
        assert f"<h2>{code} " in page
    assert page.count("A bad answer") == 12
    assert "<h2>What each score claims</h2>" in page
    written = {path.name for path in out.iterdir()} - {"runs", "study.json"}
    assert written == {*study_files(Audit)} - {"audit.png"}
    assert (context["tokens"], context["seed"], context["split"]) == ("cls", 0, "test")
    assert context["per_layer"] == [str(folders["per_layer"])]
    assert context["variants"] == [str(folders["other"])]
    frame = pd.read_csv(out / "audit.csv")
    assert len(frame) == len(metrics)
    assert metrics["D8_this CLT_with_other_kendall"]["value"] == pytest.approx(
        frame.set_index("name").loc["D8_this CLT_with_other_kendall", "value"]
    )
    for rival in ("this_CLT", "per_layer", "shuffled_weights", "linear_maps", "first_order"):
        assert f"D12_{rival}_mlp_mean_all_total_single_loss_pearson" in metrics
    # finished rivals are not trained again
    assert not (out / "runs" / "shuffled-weights" / "checkpoints").exists()
    before = (out / "runs" / "shuffled-weights" / "model.safetensors").stat().st_mtime_ns
    assert main([*args, "--templates", "single", "--out", str(out), "--resume"]) == 0
    assert (out / "runs" / "shuffled-weights" / "model.safetensors").stat().st_mtime_ns == before
    again = {m["name"]: m for m in json.loads((out / "metrics.json").read_text())["metrics"]}
    assert again == metrics


def test_what_was_not_given_is_said_to_be_missing(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["audit", "--clt", str(folders["own"]), "--limit", "6", "--train-limit", "10"]
    assert main([*args, "--no-train", "--keep", "2", "--out", str(out)]) == 0
    assert "nothing is trained" in capsys.readouterr().out
    context = json.loads((out / "metrics.json").read_text())["context"]
    assert set(context["left_out"]) == {"D1", "D8", "D11, in part"}
    assert "no per-layer transcoder was given" in (out / "audit.html").read_text()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--split", "test"], None),
        (["--split", "train"], "the images trained on; expected held-out ones"),
        (["--per-layer", "own"], "--per-layer names clt, which is a cross-layer transcoder"),
        (["--variants", "per_layer"], "--variants names .*, which is a per-layer transcoder"),
        (["--resume", "--overwrite"], "--resume and --overwrite are both set"),
        (["--k", "500"], "k is 500; expected at least 1 and at most 24 features"),
        (["--k", "0"], "k is 0; expected at least 1"),
        (["--clt", "per_layer"], "--clt is a per-layer transcoder; expected one that reads across"),
        (["--full", "--no-train"], "--full and --no-train are both set; expected one of them"),
        (["--variants", "other", "--full"], "--full and --variants are both set; expected one of"),
        (["--keep", "8"], "keep is 8; layer 7 has 8 sources, expected 1 to 7"),
        (["--tokens", "patch"], "tokens is patch at the last layer, whose rows cannot reach"),
    ],
)
def test_bad_input(
    more: list[str],
    sentence: str | None,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = [str(folders.get(each, each)) for each in more]
    args = ["audit", "--limit", "6", "--train-limit", "6", *more]
    args += [] if "--clt" in more else ["--clt", str(folders["own"])]
    code = main([*args, "--plan", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip().splitlines()
    if sentence is None:
        assert code == 0
    else:
        assert code == 2
        assert re.search(sentence, error[-1]), error[-1]
