"""Every result of the room tells itself: its files, its context, its view in a notebook."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from builders import random_clt

from vit_clt import ReLUTopK, ZeroShot
from vit_clt.analysis import (
    cascade,
    fidelity,
    reconstructions,
    surrogate_faithfulness,
    threshold_cost,
)
from vit_clt.analysis.reporting.study import Study, study_files, write_study
from vit_clt.data.images import ImageData, ImageSubset
from vit_clt.hooks import HookedViT
from vit_clt.interchange.thresholds import with_thresholds
from vit_clt.outputs import OutputFolder

N, SEED = 12, 4
NAMES = ("cascade", "reconstruction", "faithfulness", "fidelity", "thresholds")


@pytest.fixture(scope="module")
def studies(digits_vit: HookedViT, digits_test: ImageData) -> dict[str, Study]:
    vit, data = digits_vit, ImageSubset(digits_test, range(N))
    first, second = (random_clt(vit, ReLUTopK(k=k), n_features=32, seed=k) for k in (3, 6))
    twin = with_thresholds(vit, first, ImageSubset(digits_test, range(N, 2 * N)))
    zs, clts = ZeroShot(vit, data.class_names, "single"), {"first": first, "second": second}
    results = (
        cascade(vit, first, data, zs, inputs=["stream", "teacher"], first_layers=[6], seed=SEED),
        reconstructions(vit, clts, data, seed=SEED),
        surrogate_faithfulness(vit, first, data, zs, layers=7, tokens="patch", seed=SEED),
        fidelity(vit, clts.items(), data, zs, seed=SEED, trained_on="noise", provenance={"k": 3}),
        threshold_cost(vit, first, twin, data, zs, seed=SEED, fitted_on="12 others"),
    )
    return {result.name: result for result in results}


@pytest.mark.parametrize("name", NAMES)
def test_a_result_writes_what_it_declares_and_shows_itself(
    name: str, studies: dict[str, Study], tmp_path: Path
):
    study = studies[name]
    write_study(OutputFolder(tmp_path / "out", study_files(type(study))).open(), study, "command")
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == set(study_files(type(study))) - {f"{name}.png"}
    context = json.loads((tmp_path / "out" / "metrics.json").read_text())["context"]
    assert (context["command"], context["data"], context["split"], context["seed"]) == (
        "command",
        "digits (test)",
        "test",
        SEED,
    )
    assert f"N = {N}" in study.caption()
    # every number at full precision, and what a reader sees
    table = pd.read_csv(tmp_path / "out" / f"{name}.csv")
    assert list(table.columns) == list(study.to_frame().columns)
    page, view = (tmp_path / "out" / f"{name}.html").read_text(), study._repr_html_()
    for column in study.shown().columns:
        assert f"<th>{column}</th>" in page.replace(' style="text-align: right;"', "")
        assert f"<th>{column}</th>" in view
    assert "digits (test), N = 12" in view
    for note in study.notes():
        assert note in view


@pytest.mark.parametrize(
    ("name", "tokens", "trajectory", "more"),
    [
        (
            "cascade",
            "cls",
            "stream teacher",
            {"readout": "text tower (templates: single)", "first_layers": [6]},
        ),
        ("reconstruction", "cls patch all", "teacher", {"clt": "first"}),
        ("faithfulness", "patch", "stream", {"layers": [7], "no_op": True}),
        (
            "fidelity",
            "all",
            "stream; teacher for R², L0 and codes read",
            {"trained_on": "noise", "k": 3},
        ),
        (
            "thresholds",
            "cls patch all",
            "stream; teacher for L0, R² and FVU",
            {"baseline": "the same CLT with top-k", "thresholds_fitted_on": "12 others"},
        ),
    ],
)
def test_the_context_says_what_was_measured(
    name: str,
    tokens: str,
    trajectory: str,
    more: dict[str, object],
    studies: dict[str, Study],
):
    context = studies[name].facts().context()
    assert (context["tokens"], context["trajectory"]) == (tokens, trajectory)
    assert {key: context[key] for key in more} == more


def test_l0s_are_those_of_the_codes(studies: dict[str, Study]):
    l0 = {name: study.facts().l0 for name, study in studies.items()}
    # biases leave some of the k largest below zero
    assert 0 < l0["faithfulness"] <= 3
    assert 0 < l0["cascade"] <= 3
    assert l0["fidelity"]["first"] == pytest.approx(l0["reconstruction"])
    compared = studies["reconstruction"].facts().context()["compared"]
    assert l0["fidelity"]["second"] == pytest.approx(compared["second"]["l0"])
    more = studies["thresholds"].facts().context()
    assert more["l0_before"] == pytest.approx(l0["reconstruction"])


def test_a_no_op_is_said(studies: dict[str, Study]):
    assert "these rows cannot reach the output: a no-op" in studies["faithfulness"].notes()


def test_the_threshold_figure_draws_both_clts_and_the_floors(studies: dict[str, Study]):
    study = studies["thresholds"]
    frame, traces = study.to_frame(), study.figure().data
    drawn = {(trace.name, trace.yaxis or "y"): list(trace.y) for trace in traces}
    assert drawn["top-k", "y"] == frame["l0_before"].tolist()
    assert drawn["thresholds", "y2"] == frame["r2_after"].tolist()
    assert drawn["unaltered model", "y3"] == (100 * frame["top1_baseline"]).tolist()
    assert drawn["floor: MLP rows at zero", "y4"] == frame["loss_floor_zero"].tolist()
    assert ("unaltered model", "y") not in drawn
    assert sum(trace.showlegend for trace in traces) == 5
