"""`vit-clt features`: what it writes, and what bad input gets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from builders import random_clt, tiny_clip
from PIL import Image

from vit_clt.analysis.features.tally import FeatureTally
from vit_clt.analysis.viewer.encoding import script_value
from vit_clt.cli import main
from vit_clt.hooks import HookedViT


def listed(out: Path) -> dict:
    """The columns of the gallery's lists, layer after layer."""
    columns: dict = {"layer": []}
    for path in sorted((out / "layers").iterdir()):
        layer = script_value(path.read_text())
        del layer["write"]
        columns["layer"] += [int(path.stem[-2:])] * len(layer["feature"])
        for name, values in layer.items():
            columns.setdefault(name, []).extend(values)
    return columns


def test_command(digits_clt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    args = [
        "features",
        "--clt",
        str(digits_clt),
        "--limit",
        "30",
        "--layers",
        "2,7",
        "--effect-images",
        "8",
    ]
    assert (
        main([*args, "--select", "effect", "--raises", "six", "--count", "3", "--out", str(out)])
        == 0
    )
    document = json.loads((out / "metrics.json").read_text())
    context = document["context"]
    assert (context["data"], context["trajectory"], context["layers"]) == (
        "digits (test)", "teacher", [2, 7],
    )  # fmt: skip
    assert (context["pages"], context["effect_images"], context["seed"]) == (6, 8, 0)
    assert 'effect raising the logit of "six" (centred' in context["select"]
    assert "any class" not in context["select"]
    frame = pd.read_csv(out / "features.csv")
    assert len(frame) == 2 * 24
    named = {m["name"]: m for m in document["metrics"]}
    shown = frame.query("layer == 7 and active_images > 0")
    assert named["mean_purity_7"]["value"] == pytest.approx(shown["purity"].mean())
    assert named["mean_purity_7"]["floor"] == pytest.approx(shown["purity_by_chance"].mean())
    assert listed(out)["layer"] == [2, 2, 2, 7, 7, 7]
    assert "N = 30, teacher trajectory" in capsys.readouterr().out
    # a feature by name brings its layer, and no rule
    feature = int(shown["feature"].iloc[0])
    again = ["features", "--clt", str(digits_clt), "--limit", "30", "--feature", f"7:{feature}"]
    assert main([*again, "--effect-images", "8", "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*again, "--effect-images", "8", "--out", str(out), "--overwrite"]) == 0
    assert listed(out)["feature"] == [feature]


def test_what_cannot_be_chosen_is_refused_before_the_pass(
    digits_clt: Path, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FeatureTally, "add", lambda *_: pytest.fail("a pass was made"))
    few = ["features", "--clt", digits_clt, "--limit", "4"]
    assert (
        refused("features", "--clt", "nowhere", "--count", "0")
        == "--count is 0; expected at least 1."
    )
    assert "--effect-images is 0; expected at least 1" in refused(*few, "--effect-images", "0")
    png = io.BytesIO()
    Image.new("L", (8, 8)).save(png, "PNG")
    pd.DataFrame({"image": [{"bytes": png.getvalue()}] * 4}).to_parquet(tmp_path / "nameless")
    nameless = ["features", "--clt", digits_clt, "--data", f"parquet:{tmp_path / 'nameless'}"]
    assert "no effects are measured; expected class names" in refused(
        *nameless, "--select", "effect"
    )


def test_refused(
    digits_clt: Path, refused: Callable[..., str], tmp_path: Path, digits_vit: HookedViT
):
    few = ["features", "--clt", digits_clt, "--limit", "4", "--effect-images", "2"]
    assert 'feature is "7-1"; expected layer:feature' in refused(*few, "--feature", "7-1")
    assert "feature is 7:24; expected features from 0 to 23" in refused(*few, "--feature", "7:24")
    assert "--feature is 9:0; expected layers from 0 to 7" in refused(*few, "--feature", "9:0")
    assert '"cat", which fits no class name' in refused(
        *few, "--layers", "7", "--select", "effect", "--raises", "cat"
    )
    assert '--raises is "six" with rule "spread"; expected rule "effect"' in refused(
        *few, "--feature", "7:1", "--raises", "six"
    )
    other = tmp_path / "other"
    random_clt(HookedViT(tiny_clip())).save_pretrained(other)
    assert "4 layers" in refused("features", "--clt", str(other), "--limit", "4")
