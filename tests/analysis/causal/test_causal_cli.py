"""`vit-clt causal`, with and without a CLT."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from assertions import tells_itself
from builders import random_clt
from scipy.stats import spearmanr

from vit_clt import CrossLayerTranscoder, InputError, load_data
from vit_clt.analysis import causal_effects, contribution_scores, rank_agreement
from vit_clt.analysis.causal.agreement import causal_agreement, score_agreement
from vit_clt.cli import main
from vit_clt.hooks import HookedViT


def test_without_a_clt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "causal"
    args = ["causal", "--limit", "6", "--site", "attn", "--fill", "resample", "--seed", "2"]
    assert main([*args, "--ablated", "patch", "--pairs", "--out", str(out)]) == 0
    frame = pd.read_csv(out / "causal.csv")
    on_y = frame.query("measure == 'y' and path == 'total'")
    # an attention layer is read by its own block's MLP
    assert len(on_y) == 8 * 9 // 2
    assert {"0+7", "3-7", "0-7", "0-4"} <= set(frame["layers"])
    document = json.loads((out / "metrics.json").read_text())
    context = document["context"]
    assert [context[k] for k in ("tokens", "ablated", "site", "fill", "seed", "l0", "clt")] == [
        "cls", "patch", "attn", "resample", 2, None, None,
    ]  # fmt: skip
    named = {m["name"]: m for m in document["metrics"]}
    row = frame.query("path == 'total' and layers == '3-7' and measure == 'delta_loss'").iloc[0]
    assert named["total_3-7_to_output_delta_loss"]["value"] == pytest.approx(row["value"])
    assert named["total_3-7_to_output_delta_loss"]["floor"] == pytest.approx(row["floor"])
    page = (out / "causal.html").read_text()
    assert "Causal effects of attention outputs on CLS rows, patch rows ablated" in page
    assert "Agreement with contribution scores" not in page
    printed = capsys.readouterr().out
    assert "none (unaltered)" in printed
    assert "C(s->l)" not in printed


def test_with_a_clt(
    digits_vit: HookedViT,
    digits_clt: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a terminal on which names of rows do not wrap
    clt = random_clt(digits_vit)
    out = tmp_path / "causal"
    args = ["causal", "--clt", str(digits_clt), "--limit", "12", "--tokens", "patch"]
    assert main([*args, "--out", str(out)]) == 0
    document = json.loads((out / "metrics.json").read_text())
    assert document["context"]["l0"] > 0
    named = {m["name"]: m for m in document["metrics"]}
    data = load_data("digits", vit=digits_vit, limit=12)
    effects = causal_effects(digits_vit, data, tokens="patch")
    scores = contribution_scores(digits_vit, clt, data, tokens="patch", kind="centred")
    for path in ("total", "direct"):
        expected = rank_agreement(
            scores.matrix.numpy(), effects.matrix(path), effect_draws=effects.draws(path)
        )
        found = named[f"centred_C_{path}_effect_on_y_spearman"]
        assert found["value"] == pytest.approx(expected.spearman.value)
        assert found["low"] == pytest.approx(expected.spearman.value.low)
        assert found["floor"] == pytest.approx(expected.spearman.floor)
        by_hand = [spearmanr(range(l), effects.matrix(path)[l, :l]).statistic for l in range(3, 8)]
        depth = named[f"depth_alone_{path}_effect_on_y_spearman"]
        assert depth["value"] == pytest.approx(np.mean(by_hand))
        assert depth["low"] <= depth["value"] <= depth["high"]
    assert "projection_C_direct_effect_on_loss_kendall" in named
    assert "centred C, total effect on loss" in capsys.readouterr().out
    assert "C(s→l)" in (out / "causal.html").read_text()

    found = score_agreement(effects, [scores])
    assert list(found) == ["centred C, total effect on y", "centred C, direct effect on y"]
    study = causal_agreement(effects, [scores], "mine")
    context = tells_itself(study, tmp_path / "told")
    assert (context["clt"], context["l0"], context["tokens"]) == ("mine", scores.l0, "patch")
    [(heading, table)] = study.further_tables().items()
    assert f"CLT mine, L0 = {scores.l0:.1f}" in heading
    assert [*found, "depth alone, total effect on y", "depth alone, direct effect on y"] == [
        *table["compared"]
    ]
    assert heading.replace("->", "-&gt;") in study._repr_html_()
    with pytest.raises(InputError, match="scores is empty"):
        causal_agreement(effects, [])
    cls = contribution_scores(digits_vit, clt, data, tokens="cls")
    with pytest.raises(InputError, match="scores were measured on cls rows of digits"):
        score_agreement(effects, [cls])
    assert np.isfinite(found["centred C, total effect on y"].spearman.value.low)


def test_refused_before_anything_is_written(refused: Callable[..., str]) -> None:
    for args, names in (
        (["--any-teacher"], "--any-teacher is given without a CLT"),
        (["--linear"], "--linear is given without a CLT"),
        (["--per-layer", "/a"], "--per-layer is given without a CLT"),
        (["--clt", "/no/such/clt"], "/no/such/clt"),
        (["--fill", "foam"], "foam"),
        (["--ablated", "words"], "words"),
        (["--limit", "1"], "data has 1 image"),
    ):
        assert names in refused("causal", *args)


def test_the_surrogate_stands_beside_the_agreement(
    digits_vit: HookedViT,
    digits_clt: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = replace(random_clt(digits_vit).config, cross_layer=False)
    CrossLayerTranscoder(config).save_pretrained(tmp_path / "per_layer")
    out = tmp_path / "causal"
    args = ["causal", "--clt", str(digits_clt), "--limit", "8", "--site", "attn"]
    args += ["--per-layer", str(tmp_path / "per_layer"), "--linear", "--train-limit", "20"]
    assert main([*args, "--templates", "single", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "The same ablations with the CLT in the MLPs' place" in printed
    frame = pd.read_csv(out / "surrogate_causality.csv")
    models = {"CLT", "per_layer", "linear maps of digits (train) (20)", "first order"}
    assert set(frame["model"]) == models | {"ViT"}
    assert set(frame["site"]) == {"attn"}
    named = {m["name"]: m for m in json.loads((out / "metrics.json").read_text())["metrics"]}
    name = "surrogate_per_layer_attn_mean_all_total_single_loss_pearson"
    row = frame.query(
        "model == 'per_layer' and path == 'total' and sets == 'single' and effect == 'loss' "
        "and measure == 'pearson'"
    ).iloc[0]
    assert named[name]["value"] == pytest.approx(row["value"])
    assert "centred_C_total_effect_on_y_spearman" in named
    assert "Do interventions change the surrogate" in (out / "causal.html").read_text()
    assert (out / "surrogate_causality.html").exists()
    # the ViT's effects are those of the study without a CLT
    alone = pd.read_csv(out / "causal.csv").query(
        "path == 'total' and layers == '3' and measure == 'delta_loss'"
    )["value"]
    mean = frame.query("model == 'ViT' and path == 'total' and sets == '3' and measure == 'mean'")[
        "value"
    ]
    assert mean.item() == pytest.approx(alone.item(), abs=1e-5)
