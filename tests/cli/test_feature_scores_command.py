"""`vit-clt feature-scores`: what it writes, and what bad input gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vit_clt.cli import main


def test_command(digits_clt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    args = ["feature-scores", "--clt", str(digits_clt), "--limit", "40", "--layers", "7"]
    args += ["--seed-clt", str(digits_clt), "--effect-images", "8", "--train-limit", "200"]
    # embeddings of the same model by its name: another path to the same numbers
    assert main([*args, "--embedding-model", "digits", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "embeddings of digits" in printed
    table = pd.read_csv(out / "feature_scores.csv")
    assert set(table["dictionary"]) == {"clt", "untrained CLT", "neurons", "principal components"}
    assert set(table["layer"]) == {7}
    own = table[table["dictionary"] == "clt"]
    measured = own["images"] >= 10
    np.testing.assert_allclose(own.loc[measured, "stability"], 1, rtol=1e-5)
    assert own.loc[~measured, "stability"].isna().all()
    document = json.loads((out / "metrics.json").read_text())
    assert document["context"]["embeddings"] == "digits"
    assert document["context"]["probes_fitted_on"] == "40 images of digits (train)"
    names = {metric["name"] for metric in document["metrics"]}
    assert {"clt_monosemanticity", "neurons_probe_auc_5", "clt_absorption_full"} <= names
    assert "clt_stability" in names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "8"], "--layers contains 8"),
        (["--seed-clt", "out/nothing"], "--seed-clt"),
        (["--hierarchy", "nothing.json"], "--hierarchy is nothing.json; found no such file."),
        (["--embedding-model", "no-such-model"], "--embedding-model"),
    ],
)
def test_bad_input_is_one_sentence(
    options: list[str], said: str, digits_clt: Path, refused: Callable[..., str]
):
    assert said in refused("feature-scores", "--clt", digits_clt, "--limit", "20", *options)


def test_a_hierarchy_that_misses_classes_is_refused(
    digits_clt: Path, tmp_path: Path, refused: Callable[..., str]
):
    file = tmp_path / "h.json"
    file.write_text('{"even": ["handwritten zero"], "odd": ["handwritten one"]}')
    found = refused("feature-scores", "--clt", digits_clt, "--hierarchy", file, "--limit", "20")
    assert found.startswith("--hierarchy misses 8 of 10 classes")
