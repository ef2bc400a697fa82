"""The evaluation of the paper on a small teacher: cells, kills, comparison, report, command."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from vit_clt import CrossLayerTranscoder, InputError, TrainConfig, ZeroShot, load_data
from vit_clt.analysis import cascade, contribution_scores
from vit_clt.analysis.reporting.study import study_files, write_study
from vit_clt.analysis.reproduction import report as reproduce_report
from vit_clt.analysis.reproduction import run as reproduce_cell
from vit_clt.analysis.reproduction.cells import (
    BACKBONES,
    FILES,
    Cell,
    Recipe,
    cells,
    is_finished,
    smoke_recipe,
)
from vit_clt.analysis.reproduction.comparison import (
    FinishedCell,
    comparison,
    comparison_metrics,
    finished_cells,
)
from vit_clt.analysis.reproduction.plan import plan, plan_table, total_needs
from vit_clt.analysis.reproduction.published import Check, paper_cascade, paper_faithfulness
from vit_clt.analysis.reproduction.report import SMOKE, differences_from_paper, study_report
from vit_clt.analysis.reproduction.run import Bench, run_cell, run_cells
from vit_clt.analysis.reproduction.study import Reproduction
from vit_clt.cli import main
from vit_clt.hooks import HookedViT
from vit_clt.outputs import OutputFolder

CELL = Cell("cifar100", "ViT-B/32", "relu_topk")
RECIPE = Recipe(
    training=TrainConfig(
        epochs=2, batch_size=128, log_every=1, checkpoint_every=1, lr=1e-3, seed=3
    ),
    n_features=32,
    k=4,
    prompts=2,
    ranges=(("cls", 6), ("patch", 7)),
    limit=16,
    smoke=True,
)


@pytest.fixture(scope="module")
def bench(digits_vit: HookedViT) -> Bench:
    """The digits stand in for a cell's teacher and data; what is written must not care."""
    train, test = (
        load_data("digits", vit=digits_vit, split=s, limit=16) for s in ("train", "test")
    )
    return Bench(CELL.dataset, CELL.backbone, digits_vit, train, test, RECIPE)


@pytest.fixture(scope="module")
def study(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    run_cells(root, ["relu_topk", "jumprelu"], bench, RECIPE)
    return root


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("this was finished and must not be done again")


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, bytes]:
    """What a cell measured, without what depends on the clock."""
    names = ("reconstruction.csv", "cascade.csv", "faithfulness.csv", "contributions.csv")
    return {name: (folder / name).read_bytes() for name in names}


def test_18_cells_with_folders_of_their_own() -> None:
    assert len({cell.path for cell in cells()}) == len(cells()) == 18
    # those that share a teacher come one after the other
    groups = [(cell.dataset, cell.backbone) for cell in cells()]
    assert groups == sorted(groups, key=groups.index)
    assert {cell.backbone for cell in cells()} == set(BACKBONES)


def test_a_cell_holds_what_it_says(study: Path, bench: Bench) -> None:
    folder = study / CELL.path
    assert {path.name for path in folder.iterdir()} == {name.split("/")[0] for name in FILES}
    assert is_finished(study, CELL)
    config = json.loads((folder / "clt" / "config.json").read_text())
    assert config["sparsifier"] == {"name": "relu_topk", "k": 4}
    clt = CrossLayerTranscoder.from_pretrained(folder / "clt").eval().requires_grad_(False)
    # measured again, from the files alone
    zs = ZeroShot(bench.vit, bench.held_out.class_names, "single")
    kinds = ["cls", "patch", "all"]
    again = cascade(bench.vit, clt, bench.held_out, zs, tokens=kinds, seed=3).to_frame()
    saved = pd.read_csv(folder / "cascade.csv")
    pd.testing.assert_frame_equal(saved, again, check_exact=False, rtol=1e-6)
    facts = json.loads((folder / "cell.json").read_text())
    fit = pd.read_csv(folder / "reconstruction.csv")
    assert facts["l0"] == pytest.approx(fit.query("tokens == 'all'")["l0"].mean())
    faithful = pd.read_csv(folder / "faithfulness.csv")
    assert set(zip(faithful["tokens"], faithful["first_layer"], strict=True)) == set(RECIPE.ranges)
    # patch rows of the last layer change nothing
    no_op = faithful.query("tokens == 'patch' and first_layer == 7").set_index("measure")
    assert no_op.loc["flip", "value"] == 0
    assert no_op["no_op"].all()
    scores = pd.read_csv(folder / "contributions.csv")
    facts = json.loads((folder / "metrics.json").read_text())["context"]
    assert set(scores["seed"]) == {facts["seed"]} == {3}
    assert (set(scores["data"]), set(scores["n"])) == ({facts["data"]}, {16})
    for tokens in ("cls", "patch"):
        of_kind, measured = (table[table["tokens"] == tokens]["l0"] for table in (scores, fit))
        assert of_kind.to_numpy() == pytest.approx(measured.mean())
    remade = contribution_scores(bench.vit, clt, bench.held_out, tokens="patch", seed=3).to_frame()
    drawn = scores.query(
        "tokens == 'patch' and kind == 'projection' and reduce == 'mean_of_ratios'"
    )
    columns = list(remade)
    pd.testing.assert_frame_equal(drawn[columns].reset_index(drop=True), remade, rtol=1e-6)
    baseline = pd.read_csv(folder.parent / "baseline.csv").set_index("templates")
    assert baseline.loc["single", "top1"] == saved["baseline"].iloc[0]
    jump = json.loads((folder.parent / "jumprelu" / "run.json").read_text())
    assert jump["cell"]["sparsifier"] == "jumprelu"


def test_finished_cells_are_not_done_again(
    study: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}
    for name in ("train", "cascade", "reconstruction", "teacher_baselines"):
        monkeypatch.setattr(reproduce_cell, name, forbidden)
    run_cells(study, ["relu_topk", "jumprelu"], bench, RECIPE)
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()} == before


def test_killed_in_training_a_cell_goes_on_at_its_step(
    study: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reproduce_cell.train

    def dies_at_step_3(*args: object, on_log: Callable, **options: object) -> object:
        def on_log_until(record: dict) -> None:
            on_log(record)
            if record.get("step") == 3 and "event" not in record:
                raise KeyboardInterrupt

        return real(*args, on_log=on_log_until, **options)

    monkeypatch.setattr(reproduce_cell, "train", dies_at_step_3)
    with pytest.raises(KeyboardInterrupt):
        run_cell(tmp_path, "relu_topk", bench, RECIPE)
    folder = tmp_path / CELL.path
    assert (folder / "checkpoints").is_dir()
    assert not is_finished(tmp_path, CELL)
    monkeypatch.setattr(reproduce_cell, "train", real)
    run_cell(tmp_path, "relu_topk", bench, RECIPE)
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r.get("event") == "start"] == [0, 2]
    ours, whole = (
        load_file(root / CELL.path / "clt" / "model.safetensors") for root in (tmp_path, study)
    )
    assert ours.keys() == whole.keys()
    assert all(bool((ours[name] == whole[name]).all()) for name in whole)
    assert contents(folder) == contents(study / CELL.path)
    assert not (folder / "checkpoints").exists()


def test_killed_in_measuring_a_cell_keeps_its_clt(
    study: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(reproduce_cell, "surrogate_faithfulness", killed)
        with pytest.raises(KeyboardInterrupt):
            run_cells(tmp_path, ["relu_topk"], bench, RECIPE)
    assert not is_finished(tmp_path, CELL)
    assert finished_cells(tmp_path) == []
    monkeypatch.setattr(reproduce_cell, "train", forbidden)
    monkeypatch.setattr(reproduce_cell, "teacher_baselines", forbidden)
    run_cells(tmp_path, ["relu_topk"], bench, RECIPE)
    assert contents(tmp_path / CELL.path) == contents(study / CELL.path)


def test_another_recipe_or_data_is_refused(study: Path, bench: Bench) -> None:
    with pytest.raises(InputError, match=r"recipe\.k is 5; expected 4, as in the run in "):
        run_cell(study, "relu_topk", bench, replace(RECIPE, k=5))
    fewer = load_data("digits", vit=bench.vit, split="test", limit=15)
    other = Bench(CELL.dataset, CELL.backbone, bench.vit, bench.train_data, fewer, RECIPE)
    with pytest.raises(InputError, match=r"measured_on\.n_images is 15; expected 16, as in"):
        run_cell(study, "relu_topk", other, RECIPE)
    with pytest.raises(InputError, match='sparsifiers is "topk"; expected'):
        RECIPE.config(bench.vit, "topk")


def as_the_paper(sparsifier: str, shift: float) -> FinishedCell:
    """A cell whose accuracies are the paper's plus `shift` points."""
    cell = replace(CELL, sparsifier=sparsifier)
    top1 = paper_cascade().query(
        "dataset == @cell.dataset and backbone == @cell.backbone and sparsifier == @sparsifier"
    )
    top1 = (top1["top1_percent"] + shift) / 100
    keys = paper_cascade().loc[top1.index, ["tokens", "first_layer", "last_layer"]]
    table = keys.assign(
        inputs="stream",
        top1=top1,
        top1_low=top1 - 0.01,
        top1_high=top1 + 0.01,
        n=10_000,
        baseline=0.6165 + 0.002,
        l0=128.0,
    )
    for name in ("floor_zero", "floor_mean"):
        table[name] = 0.1
    for name in ("loss", "loss_low", "loss_high", "loss_baseline", "loss_floor_zero"):
        table[name] = 1.0
    table["loss_floor_mean"] = 1.5
    keys = paper_faithfulness()[["tokens", "first_layer", "last_layer"]]
    names = ("delta_top1", "flip", "kl", "cka", "top1")
    faithful = pd.concat(
        keys.assign(measure=name, unit="fraction", value=0.5, low=0.0, high=1.0, n=10_000, l0=128.0)
        for name in names
    ).assign(inputs="stream", baseline=0.0, floor_mean=0.9, floor_zero=0.9)
    fit = pd.DataFrame({"layer": range(12), "r2": 0.5, "cosine": 0.9, "mse": 0.1, "l0": 128.0})
    fit = fit.assign(dead=0.1, cross_layer=0.5, n_images=10_000)
    facts = {
        "l0": 128.0,
        "n": 10_000,
        "recipe": Recipe().to_json(),
        "teacher": {"model": "ViT-B-32-quickgelu", "pretrained": "openai"},
        "trained_on": {"name": "cifar100 (train)", "n_images": 50_000},
        "measured_on": {"name": "cifar100 (test)", "n_images": 10_000},
        "left_out": 0,
    }
    baseline = pd.DataFrame(
        {
            "templates": ["single", "ensemble"],
            "top1": [0.617, 0.64],
            "top1_low": [0.607, 0.63],
            "top1_high": [0.627, 0.65],
            "loss": 1.4,
            "loss_low": 1.3,
            "loss_high": 1.5,
            "n": 10_000,
        }
    )
    kinds = pd.concat(fit.assign(tokens=kind) for kind in ("cls", "patch", "all"))
    return FinishedCell(cell, facts, table, faithful, kinds, baseline)


def test_comparison_stands_beside_the_papers_numbers() -> None:
    frame = comparison([as_the_paper("relu_topk", 0.5), as_the_paper("abs_topk", -2.0)])
    top1 = frame.query("measure == 'top1' and sparsifier.notna() and inputs == 'stream'")
    top1 = top1[top1["table"].between(6, 8)]
    assert len(top1) == 2 * 36
    difference = top1.groupby("sparsifier")["difference"].agg(["min", "max"])
    assert np.allclose(difference.loc["relu_topk"], 0.005)
    assert np.allclose(difference.loc["abs_topk"], -0.02)
    inside = top1.groupby("sparsifier")["paper_inside_interval"].agg(["all", "any"])
    assert inside.loc["relu_topk"].tolist() == [True, True]
    assert inside.loc["abs_topk"].tolist() == [False, False]
    # table 5: units are the same on both sides
    row = frame.query("measure == 'flip' and tokens == 'patch' and first_layer == 0").iloc[0]
    assert (row["paper"], row["table"]) == (pytest.approx(0.352), 5)
    assert row["difference"] == pytest.approx(0.5 - 0.352)
    row = frame.query("measure == 'delta_top1' and tokens == 'patch' and first_layer == 0").iloc[0]
    assert row["paper"] == pytest.approx(-0.111)
    row = frame.query("measure == 'kl' and tokens == 'cls' and first_layer == 0").iloc[0]
    assert row["paper"] == 0.034
    baselines = frame.query("measure == 'baseline_top1'").set_index("templates")
    assert baselines["difference"].to_dict() == pytest.approx(
        {"single": 0.0005, "ensemble": 0.0235}
    )
    assert baselines["paper_inside_interval"].to_dict() == {"single": True, "ensemble": False}
    metrics = {metric.name: metric for metric in comparison_metrics(frame)}
    assert len(metrics) == len(comparison_metrics(frame))
    one = metrics["cifar100_ViT-B-32_abs_topk_cls_stream_3_to_11_top1_minus_paper"]
    assert (one.value, one.low, one.high) == pytest.approx((-0.02, -0.03, -0.01))
    assert metrics["cifar100_ViT-B-32_baseline_top1_ensemble"].value == 0.64


def test_cells_that_the_paper_has_no_number_for_stay_without() -> None:
    each = as_the_paper("relu_topk", 0.0)
    elsewhere = replace(each, cell=replace(each.cell, backbone="ViT-B/16"))
    frame = comparison([elsewhere])
    assert frame.query("measure == 'flip'")["paper"].isna().all()  # table 5 is of ViT-B/32
    assert frame.query("measure == 'top1' and table > 5")["table"].isin([9, 10, 11]).all()
    taught = each.cascade.assign(inputs="teacher")
    frame = comparison([replace(each, cascade=taught)])
    assert frame.query("inputs == 'teacher'")["paper"].isna().all()


def test_report_says_first_what_differs_and_what_is_missing(study: Path) -> None:
    found = finished_cells(study)
    assert [each.cell.sparsifier for each in found] == ["jumprelu", "relu_topk"]
    page = study_report(found, comparison(found), RECIPE)
    first = page[: page.index("<h2>In short")]
    assert SMOKE.split(".")[0] in first
    assert "n_features is 32; the paper has 16 times the width" in first
    assert "2 of 18 finished" in first
    assert "cifar100 ViT-B/32 abs_topk" in first
    assert "cifar100 ViT-B/32 relu_topk" not in first
    assert page.count("SMOKE RUN, NUMBERS MEAN NOTHING") == 1
    assert "43.50 against a baseline of 43.56" in page


def test_report_of_paper_sized_cells_is_not_called_smoke() -> None:
    found = [as_the_paper("relu_topk", 0.5)]
    page = study_report(found, comparison(found), Recipe())
    assert "SMOKE" not in page
    assert "(table 6)" in page
    assert "+0.50" in page
    said = differences_from_paper(Recipe())
    assert len(said) == 2
    assert "templates: single" in said[0]
    longer = replace(Recipe(), training=replace(Recipe().training, epochs=3, workers=4, seed=1))
    assert differences_from_paper(longer)[0] == "Training: epochs is 3; the paper's preset has 10."
    assert len(differences_from_paper(longer)) == 3


def test_an_empty_study_still_has_a_report(tmp_path: Path) -> None:
    page = study_report(finished_cells(tmp_path), comparison([]), smoke_recipe())
    assert "0 of 18 finished" in page


@pytest.mark.parametrize("n_finished", [0, 2])
def test_the_study_writes_what_it_declares(n_finished: int, study: Path, tmp_path: Path) -> None:
    result = Reproduction(finished_cells(study)[:n_finished], RECIPE)
    files = study_files(Reproduction)
    write_study(OutputFolder(tmp_path / "out", files).open(), result, "reproduce")
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(files)
    context = json.loads((tmp_path / "out/metrics.json").read_text())["context"]
    assert context["data"] == "cifar100" * (n_finished > 0)
    assert len(context["l0"]) == n_finished
    assert context["recipe"] == RECIPE.to_json()
    table = pd.read_csv(tmp_path / "out/comparison.csv")
    assert len(table) == len(comparison(result.finished))
    assert f"Cells finished: {n_finished}." in result._repr_html_()


@pytest.mark.parametrize(
    ("wrong", "unknown", "said"),
    [
        (0, 0, "3 checks of the paper's tables: 3 hold and 0 do not. They"),
        (2, 0, "5 checks of the paper's tables: 3 hold and 2 do not. They"),
        (0, 1, "4 checks of the paper's tables: 3 hold and 0 do not; 1 cannot be decided"),
    ],
)
def test_the_report_counts_checks_as_they_came_out(
    wrong: int, unknown: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[bool | None] = [True] * 3 + [False] * wrong + [None] * unknown
    made = [Check(f"rule {i}", "table", "found", holds) for i, holds in enumerate(outcomes)]
    monkeypatch.setattr(reproduce_report, "checks", lambda: made)
    page = html.unescape(study_report([], comparison([]), Recipe()))
    assert said in page
    for i, holds in enumerate(outcomes):
        assert (f"rule {i}" in page) == (holds is not True)
    assert page.count("unknown") == unknown


@pytest.mark.parametrize(
    ("percents", "said"),
    [
        ([100 * 1000 / 5000], "shares of 5,000 images. 4,952 of the 5,000 validation images have a "
         "box, so the paper seems to give every image a label"),
        ([100 * 991 / 4952], "shares of 4,952 images. 4,952 of the 5,000 validation images have a "
         "box, so the paper seems to leave the others out."),
        ([50.0], "shares of 5,000 or 4,952 images. 4,952 of the 5,000 validation images have a "
         "box; they do not tell"),
        ([0.01], "shares of neither 5,000 nor 4,952 images. 4,952 of the 5,000 validation images "
         "have a box."),
    ],
)  # fmt: skip
def test_what_the_report_says_of_coco_follows_from_its_accuracies(
    percents: list[float], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame({"dataset": "coco", "top1_percent": np.round(percents, 2)})
    monkeypatch.setattr(reproduce_report, "paper_cascade", lambda: frame)
    assert said in html.unescape(study_report([], comparison([]), Recipe()))


def test_broken_cells_are_named(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / CELL.path
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text("{}")
    with pytest.raises(InputError, match="expected the files of a finished cell"):
        finished_cells(tmp_path)


def test_the_plan_counts_what_then_happens(study: Path, bench: Bench) -> None:
    chosen = [CELL, replace(CELL, sparsifier="jumprelu")]
    costs = plan(chosen, RECIPE, {CELL.backbone: bench.vit}, {CELL.dataset: (1000, 1000)})
    for cost in costs:
        folder = study / cost.cell.path
        records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        assert cost.steps == records[-1]["step"]
        tensors = load_file(folder / "clt" / "model.safetensors")
        assert cost.n_parameters == sum(t.numel() for t in tensors.values())
        size = (folder / "clt" / "model.safetensors").stat().st_size
        assert cost.result_bytes == pytest.approx(size, rel=0.05)
        assert cost.train_seconds > 0
        assert cost.measure_seconds > 0
    total = total_needs(costs)
    assert total.disk["result"] == sum(cost.result_bytes for cost in costs)
    assert plan_table(costs)["images"].tolist() == ["16 / 16"] * 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--datasets", "cifar10"],
            '--datasets holds "cifar10"; expected cifar100, coco, imagenet100',
        ),
        (["--datasets", "coco:"], '--datasets holds "coco:"'),
        (["--datasets", "coco", "coco"], "--datasets holds coco twice"),
        (["--datasets"], "datasets is empty"),
        (["--backbones", "ViT-L/14"], "ViT-L/14"),
        (
            ["--weights", "ViT-B/32"],
            '--weights holds "ViT-B/32"; expected ViT-B/32=PATH or ',
        ),
        (["--weights", "ViT-B/32=absent.pt"], "weights of ViT-B/32 are absent.pt; expected a file"),
        (["--k", "0"], "k is 0; expected at least 1"),
        (["--resume", "--overwrite"], "--overwrite and --resume are both set"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *args, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_another_study_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = {"recipe": smoke_recipe().to_json(), "pretrained": "openai", "weights": {}}
    (tmp_path / "reproduce.json").write_text(json.dumps(started))
    args = ["reproduce", "--smoke", "--k", "5", "--resume", "--out", str(tmp_path)]
    assert main(args) == 2
    assert "recipe.k is 5; expected" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["reproduce", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_plan_in_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["--smoke", "--plan", "--datasets", "coco", "--backbones", "ViT-B/32", "--out", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "vit_clt", "reproduce", *args, "--sparsifiers", "abs_topk"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    assert "SMOKE RUN" in done.stdout
    assert "coco ViT-B/32 abs_topk" in done.stdout
    assert "17.7 M" in done.stdout
    assert "estimate" in done.stdout
    assert not out.exists()
