"""The command line: what each command writes, and what bad input gets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from oracles.run_train import At, limit_file_size, trained
from safetensors.torch import load_file, save_file

from vit_clt import CrossLayerTranscoder
from vit_clt.analysis.fit.faithfulness_study import SurrogateFaithfulness
from vit_clt.analysis.reporting.study import study_files
from vit_clt.cli import main
from vit_clt.metrics import CONTEXT_KEYS
from vit_clt.transcoder.train_config import PRESETS

SMALL = ["--limit", "40", "--epochs", "1", "--n-features", "32", "--k", "4"]
METRIC_KEYS = {"name", "value", "unit", "n", "low", "high", "floor", "baseline"}


@pytest.fixture(scope="session")
def clt_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "clt"
    assert main(["train", *SMALL, "--out", str(folder)]) == 0
    return folder


def read_metrics(folder: Path) -> dict[str, dict]:
    document = json.loads((folder / "metrics.json").read_text())
    assert set(document) == {"context", "metrics"}
    assert set(CONTEXT_KEYS) <= document["context"].keys()
    assert all(set(metric) == METRIC_KEYS for metric in document["metrics"])
    return {metric["name"]: metric for metric in document["metrics"]}


# ---- what commands write ------------------------------------------------------------------------


def test_train_writes_a_clt(clt_folder: Path):
    files = {"config.json", "model.safetensors", "README.md", "train.jsonl", "metrics.json"}
    files |= {"run.json", "training.html", "checkpoints", "manifest.json"}
    assert {f.name for f in clt_folder.iterdir()} == files
    config = json.loads((clt_folder / "config.json").read_text())
    assert config["n_features"] == 32
    assert config["teacher"]["activation"] == "QuickGELU"
    events = [json.loads(line) for line in (clt_folder / "train.jsonl").read_text().splitlines()]
    assert events[0] == {"event": "start", "step": 0}
    assert [event.get("event") for event in events] == ["start", None, "validation", "end"]
    assert events[-1]["step"] == 1
    assert "Plotly.newPlot" in (clt_folder / "training.html").read_text()
    assert "last_batch_fvu" in (clt_folder / "README.md").read_text()
    assert read_metrics(clt_folder)["last_batch_l0"]["value"] <= 4


@pytest.mark.parametrize("sparsifier", ["abs_topk", "jumprelu"])
def test_train_with_other_sparsifiers(sparsifier: str, tmp_path: Path):
    out = tmp_path / "clt"
    assert main(["train", *SMALL, "--sparsifier", sparsifier, "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["sparsifier"]["name"] == sparsifier
    context = json.loads((out / "metrics.json").read_text())["context"]
    assert context["train"]["sparsity"].get("l0") == (4.0 if sparsifier == "jumprelu" else None)


def test_contributions(clt_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "scores"
    args = ["contributions", "--clt", str(clt_folder), "--limit", "30", "--out", str(out)]
    assert main(args) == 0
    table = pd.read_csv(out / "contributions.csv")
    sums = table.groupby(["tokens", "kind", "reduce", "target"])["score"].sum()
    assert sums.xs("projection", level="kind").to_numpy() == pytest.approx(1, abs=1e-9)
    assert sums.xs("centred", level="kind").to_numpy() == pytest.approx(1, abs=1e-9)
    metrics = read_metrics(out)
    row = table.query("tokens == 'cls' and kind == 'centred' and target == 7 and source == 7")
    assert metrics["centred_cls_7_to_7"]["value"] == pytest.approx(row["score"].item())
    assert "Plotly.newPlot" in (out / "contributions.html").read_text()
    assert "not what MLP_s contributed" in capsys.readouterr().out


def test_a_study_says_how_well_its_clt_fits(
    clt_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clt = CrossLayerTranscoder.from_pretrained(clt_folder)
    clt.b_dec.data[2] += 50  # one layer far from every y
    clt.save_pretrained(tmp_path / "bad")
    options = ["--data", "digits", "--limit", "12", "--out", str(tmp_path / "out")]
    assert main(["contributions", "--clt", str(tmp_path / "bad"), *options]) == 0
    told, first, *_, last_but_one, _ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"time: about \d+ s for 12 images; memory: about [\d.]+ [GM]B", told)
    assert first.startswith("WARNING: Fit of bad on digits (test), 12 images: R2 CLS ")
    assert "Worse than the mean at layer" in first
    assert last_but_one == first
    page = (tmp_path / "out" / "contributions.html").read_text()
    assert first.removeprefix("WARNING: ") in page.split("</header>")[0]
    (fit,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["context"]["fit"]
    assert {"layer": 2, "tokens": "patch"} in fit["worse_than_mean"]


def test_contributions_of_two_clts_on_one_class(
    clt_folder: Path, tmp_path: Path, refused: Callable[..., str]
):
    clt = CrossLayerTranscoder.from_pretrained(clt_folder)
    clt.W_dec[0].data *= 1.5
    clt.save_pretrained(tmp_path / "other")
    out = tmp_path / "scores"
    args = ["contributions", "--clt", clt_folder, "--compare", tmp_path / "other", "--limit", "30"]
    args = [*map(str, args), "--kind", "centred", "--tokens", "cls"]
    assert main([*args, "--label", "handwritten three", "--seed", "2", "--out", str(out)]) == 0
    files = [f"{n}.{kind}" for n in ("contributions", "difference") for kind in ("html", "csv")]
    assert all((out / file).is_file() for file in files)
    table = pd.read_csv(out / "contributions.csv").query("kind == 'centred' and source >= 0")
    assert table["clt"].unique().tolist() == ["clt", "other"]
    by_clt = table.set_index(["clt", "target", "source"])
    differences = pd.read_csv(out / "difference.csv").query("kind == 'centred'")
    found = differences.set_index(["target", "source"]).loc[(7, 0)]
    shares = [by_clt.loc[(name, 7, 0), "score"] for name in ("clt", "other")]
    assert found["difference"] == pytest.approx(shares[0] - shares[1])
    assert found["low"] <= found["difference"] <= found["high"]
    metrics = read_metrics(out)
    assert metrics["other_centred_cls_0_to_7"]["value"] == pytest.approx(shares[1])
    assert metrics["clt_less_other_centred_cls_0_to_7"]["low"] == pytest.approx(found["low"])
    context = json.loads((out / "metrics.json").read_text())["context"]
    assert context["data"] == "digits (test), class handwritten three"
    assert metrics["clt_centred_cls_0_to_7"]["n"] == table["n"].iloc[0] < 30
    for extra, sentence in (
        (["--label", "eleven"], 'label is "eleven", which fits no class name; expected one of'),
        (["--image", "30"], "image is 30; expected a row from 0 to 29."),
        (["--compare", str(clt_folder)], "a second time; expected different CLTs"),
    ):
        assert sentence in refused(*args, *extra)


def test_ablate(clt_folder: Path, tmp_path: Path):
    out = tmp_path / "ablation"
    args = ["ablate", "--clt", clt_folder, "--limit", "30", "--fill", "resample", "--out", out]
    assert main([str(a) for a in args]) == 0
    table = pd.read_csv(out / "ablation.csv")
    assert len(table) == 2 * 9
    keep_all = table.query("mode == 'keep' and k == 8")["loss"].item()
    drop_none = table.query("mode == 'drop' and k == 0")["loss"].item()
    assert keep_all == pytest.approx(drop_none)
    assert read_metrics(out)["keep_8_loss"]["value"] == pytest.approx(keep_all)


def test_ablate_several_targets_and_a_given_set(
    clt_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "ablation"
    args = ["ablate", "--clt", clt_folder, "--limit", "12", "--target", "1,3", "--out", out]
    more = ["--rankings", "last", "random", "--draws", "2", "--sources", "0,2-3"]
    assert main([str(a) for a in (*args, *more)]) == 0
    table = pd.read_csv(out / "ablation.csv")
    assert table["ranking"].tolist() == ["last"] * 10 + ["random"] * 20 + ["given"] * 2
    assert table["sources"].iloc[-1] == "1: 0 | 3: 0 2 3"
    context = json.loads((out / "metrics.json").read_text())["context"]
    assert (context["target"], context["sources"]) == ([1, 3], [0, 2, 3])
    printed = capsys.readouterr().out
    for words in ("layer 1, 3", "random keep 2", "given drop 3", "2 draws"):
        assert words in printed
    assert read_metrics(out)["given_keep_3_loss"]["value"] == table["loss"].iloc[-2]


def test_keep_sets(clt_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "sets"
    args = ["keep-sets", "--clt", clt_folder, "--limit", "20", "--k", "2", "--fill", "mean"]
    assert main([str(a) for a in (*args, "--out", out)]) == 0
    table = pd.read_csv(out / "keep_sets.csv")
    assert len(table) == 28
    rank = (
        1
        + (
            table["loss"]
            < table.set_index("marks").filter(like="projection", axis=0)["loss"].item()
        ).sum()
    )
    metrics = read_metrics(out)
    assert metrics["projection_rank_loss"]["value"] == rank
    assert metrics["n_sets"]["value"] == 28
    printed = capsys.readouterr().out
    assert "all 28 sets of 2 sources of layer 7" in printed
    assert "explains most of the loss" in printed
    for kind in ("html", "json", "md", "tex"):
        assert (out / f"keep_sets.{kind}").exists()


def test_reconstruct(clt_folder: Path, tmp_path: Path):
    out = tmp_path / "fit"
    assert main(["reconstruct", "--clt", str(clt_folder), "--limit", "30", "--out", str(out)]) == 0
    table = pd.read_csv(out / "reconstruction.csv")
    assert len(table) == 8 * 3
    value = table.query("layer == 3 and tokens == 'patch'")["r2"].item()
    assert read_metrics(out)["r2_patch_layer_3"]["value"] == pytest.approx(value)


def test_reconstruct_several(
    clt_folder: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
):
    clt = CrossLayerTranscoder.from_pretrained(clt_folder)
    for decoder in clt.W_dec:
        decoder.data.mul_(0.5)
    clt.save_pretrained(tmp_path / "half")
    args = ["reconstruct", "--clt", clt_folder, "--limit", "30"]
    assert main([*map(str, args), "--out", str(tmp_path / "alone")]) == 0
    out = tmp_path / "both"
    both = [*args, "--compare", tmp_path / "half", "--out", out]
    assert main([*map(str, both)]) == 0
    table = pd.read_csv(out / "reconstruction.csv")
    assert table["clt"].tolist() == ["clt"] * 24 + ["half"] * 24
    alone = pd.read_csv(tmp_path / "alone" / "reconstruction.csv")
    pd.testing.assert_frame_equal(table[:24], alone)
    half = table.query("clt == 'half' and tokens == 'patch' and layer == 3")["r2"].item()
    metrics = read_metrics(out)
    assert metrics["half_r2_patch_layer_3"]["value"] == pytest.approx(half)
    assert abs(metrics["r2_patch_layer_3"]["value"] - half) > 1e-4
    printed = capsys.readouterr().out
    assert "clt L0" in printed
    assert "half L0" in printed
    # one not of this teacher, or named twice, is refused before anything is replaced
    clt.config = replace(clt.config, teacher=replace(clt.config.teacher, weights_sha256="0" * 64))
    clt.save_pretrained(tmp_path / "other")
    sentence = refused(*args, "--compare", tmp_path / "other", "--out", out, "--overwrite")
    assert f'--compare holds "{tmp_path / "other"}": ' in sentence
    assert "--any-teacher" in sentence
    sentence = refused(*args, "--compare", clt_folder, "--out", out, "--overwrite")
    assert "second time" in sentence
    pd.testing.assert_frame_equal(pd.read_csv(out / "reconstruction.csv"), table)


def test_cascade(clt_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "cascade"
    args = ["cascade", "--clt", clt_folder, "--limit", "20", "--layers", "0,6-7", "--out", out]
    assert main([str(a) for a in args]) == 0
    table = pd.read_csv(out / "cascade.csv")
    assert table["tokens"].tolist() == [t for t in ("cls", "patch", "all") for _ in range(3)]
    assert table["first_layer"].tolist() == [0, 6, 7] * 3
    assert set(table["inputs"]) == {"stream"}
    assert "Plotly.newPlot" in (out / "cascade.html").read_text()
    metrics = read_metrics(out)
    row = table.query("tokens == 'patch' and first_layer == 6").iloc[0]
    assert metrics["patch_stream_6_to_7_loss"]["value"] == pytest.approx(row["loss"])
    assert metrics["patch_stream_6_to_7_top1"]["floor"] == pytest.approx(row["floor_mean"])
    assert "all 6-7 stream" in capsys.readouterr().out
    more = ["--tokens", "cls", "--inputs", "teacher", "stream", "--overwrite"]
    assert main([*map(str, args), *more]) == 0
    table = pd.read_csv(out / "cascade.csv")
    assert table["inputs"].tolist() == ["teacher"] * 3 + ["stream"] * 3


def test_faithfulness(
    clt_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "200")  # a terminal on which names of columns do not wrap
    out = tmp_path / "faithful"
    args = ["faithfulness", "--clt", clt_folder, "--limit", "30", "--layers", "4-6"]
    args += ["--tokens", "patch", "--inputs", "teacher", "--out", out]
    assert main([str(a) for a in args]) == 0
    assert {f.name for f in out.iterdir()} == set(study_files(SurrogateFaithfulness)) - {
        "faithfulness.png"
    }
    table = pd.read_csv(out / "faithfulness.csv").set_index("measure")
    assert set(table["layers"]) == {"4-6"}
    metrics = read_metrics(out)
    for name in ("flip", "kl", "cka", "spearman", "prompt_kl", "delta_loss"):
        row, metric = table.loc[name], metrics[name]
        assert metric["value"] == pytest.approx(row["value"])
        assert metric["floor"] == pytest.approx(row["floor_mean"])
        assert metrics[f"floor_zero_{name}"]["value"] == pytest.approx(row["floor_zero"])
    assert metrics["kl"]["low"] < metrics["kl"]["value"] < metrics["kl"]["high"]
    context = json.loads((out / "metrics.json").read_text())["context"]
    assert (context["layers"], context["trajectory"]) == ([4, 5, 6], "teacher")
    assert 0 < context["l0"] <= 4
    page = (out / "faithfulness.html").read_text()
    assert "Surrogate faithfulness: patch rows, layers 4-6" in page
    assert "a black and white photo of the {}." in page
    assert "MLP rows at their mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layers", "names"),
    [("6-4", "6-4"), ("last", "last"), ("-1", "-1"), ("4-8", "0 to 7"), ("8", "0 to 7")],
)
def test_bad_layer_ranges(layers: str, names: str, clt_folder: Path, refused: Callable[..., str]):
    sentence = refused("faithfulness", "--clt", clt_folder, "--limit", "4", f"--layers={layers}")
    assert "layers" in sentence
    assert names in sentence


@pytest.mark.slow
def test_demo_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # a third of its training: what it must reach is the same, and harder to reach
    monkeypatch.setitem(PRESETS, "demo", replace(PRESETS["demo"], epochs=4))
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    metrics = read_metrics(out)
    assert metrics["teacher_top1"]["value"] >= 0.95
    assert metrics["r2_patch"]["value"] >= 0.85
    assert metrics["seconds"]["value"] > 0
    assert metrics["replaced_all_top1"]["value"] > metrics["replaced_all_top1"]["floor"]
    page = (out / "report.html").read_text()
    assert page.count("<h2>") == 7
    assert "http://" not in page.split("<script")[0]
    # the CLT it leaves behind is one that every command takes
    check = ["reconstruct", "--clt", str(out / "clt"), "--limit", "5", "--out", str(tmp_path / "r")]
    assert main(check) == 0


# ---- the front door -----------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vit-clt 0.")


def test_exit_codes_of_the_process(tmp_path: Path):
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        program = "from vit_clt.cli import script; script()"
        command = [sys.executable, "-c", program, *args]
        return subprocess.run(command, capture_output=True, text=True)

    assert run("--version").returncode == 0
    bad = run("train", "--colour", "red")
    assert bad.returncode == 2
    assert "--colour" in bad.stderr
    assert not bad.stdout
    # the same from within a command
    late = trained(["--data", "nothing"], tmp_path / "x")
    assert late.code == 2
    assert 'data is "nothing"' in late.err
    assert not late.out


def test_an_unforeseen_error_exits_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("vit_clt.training.run_folder.train", fail)
    assert main(["train", *SMALL, "--out", str(tmp_path / "x")]) == 1
    assert "RuntimeError: boom" in capsys.readouterr().err


# ---- bad input ----------------------------------------------------------------------------------

CLIP = ["train", "--data", "digits", "--model", "ViT-B-32", "--pretrained"]
REFUSALS = {
    "unknown model": (["train", "--model", "NoSuchModel", "--pretrained", "x"], "NoSuchModel"),
    "unknown tag": ([*CLIP, "nope"], "nope"),
    "missing weights": (["train", "--model", "local-dir:/no/such"], "/no/such"),
    "gelu for quickgelu": ([*CLIP, "openai"], "quickgelu"),
    "unknown data form": (["train", "--data", "cats"], "parquet:PATH"),
    "missing parquet": (["train", "--data", "parquet:/no/such"], "/no/such"),
    "unknown split": (["train", "--split", "val"], "val"),
    "zero limit": (["train", "--limit", "0"], "--limit is 0"),
    "negative limit": (["train", "--limit", "-3"], "--limit is -3"),
    "k above F": (["train", "--k", "40", "--n-features", "32"], "--k is 40"),
    "k of zero": (["train", "--k", "0"], "--k is 0"),
    "negative rate": (["train", "--lr", "-1"], "--lr is -1"),
    "no epochs": (["train", "--epochs", "0"], "--epochs is 0"),
    "not a number": (["train", "--epochs", "many"], "many"),
    "unknown sparsifier": (["train", "--sparsifier", "softmax"], "softmax"),
    "unknown option": (["train", "--colour", "red"], "--colour"),
    "unknown command": (["trian"], "trian"),
    "no command": ([], "a command is missing"),
    "unknown device": (["train", "--device", "abacus"], "abacus"),
    "missing class names": (["train", "--class-names", "/no/such"], "/no/such"),
    "missing clt": (["contributions", "--clt", "/no/such/clt"], "/no/such/clt"),
    "random weights unasked": (["train", "--model", "ViT-B-32"], "--pretrained is missing"),
    "no images": (["train", "--model", "ViT-B-32", "--pretrained", "random"], "--data is missing"),
    "token kind": (["ablate", "--clt", "x", "--tokens", "words"], "words"),
    "cascade's rows": (["cascade", "--clt", "x", "--tokens", "cls", "words"], "words"),
    "cascade's inputs": (["cascade", "--clt", "x", "--inputs", "oracle"], "oracle"),
    "layers": (["cascade", "--clt", "x", "--layers", "7-"], '--layers is "7-"'),
    "layers backwards": (["cascade", "--clt", "x", "--layers", "7-3"], '--layers is "7-3"'),
    "search": (["retrieve", "--clt", "x", "--search", "psychic"], "psychic"),
    "fill": (["ablate", "--clt", "x", "--fill", "foam"], "foam"),
    "targets": (["ablate", "--clt", "x", "--target", "some"], '--target is "some"'),
    "sources": (["ablate", "--clt", "x", "--sources", "3-"], '--sources is "3-"'),
    "ranking": (["ablate", "--clt", "x", "--rankings", "best"], "best"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_with_one_sentence(case: str, refused: Callable[..., str]):
    args, names = REFUSALS[case]
    assert names in refused(*args)


@pytest.mark.parametrize("command", ["contributions", "export", "weights"])
def test_device_of_a_study(command: str, clt_folder: Path, refused: Callable[..., str]):
    sentence = refused(command, "--clt", clt_folder, "--device", "abacus")
    assert '--device is "abacus", which is not usable' in sentence


def test_claims(clt_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "claims"
    args = ["claims", "--clt", clt_folder, "--limit", "24", "--keep", "3", "--out", out]
    assert main([str(a) for a in args]) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv(out / "claims.csv")
    metrics = read_metrics(out)
    assert table.set_index("name")["value"].to_dict() == {n: m["value"] for n, m in metrics.items()}
    context = json.loads((out / "metrics.json").read_text())["context"]
    assert (context["target"], context["k"]) == (7, 3)
    for verdict in context["claims"]:
        assert verdict in printed


def test_target_out_of_range(clt_folder: Path, refused: Callable[..., str]):
    sentence = refused("ablate", "--clt", clt_folder, "--target", "8", "--limit", "4")
    assert "8" in sentence
    assert "0 to 7" in sentence


def test_sets_out_of_range(clt_folder: Path, refused: Callable[..., str]):
    where = ["--clt", clt_folder, "--limit", "4"]
    assert "--k is 8" in refused("keep-sets", *where, "--k", "8")
    assert "--keep is 8" in refused("claims", *where, "--keep", "8")
    assert "--sources holds 5" in refused("ablate", *where, "--target", "4", "--sources", "5")
    assert "--draws is 0" in refused("ablate", *where, "--rankings", "random", "--draws", "0")


def test_cascade_out_of_range(clt_folder: Path, refused: Callable[..., str]):
    args = ["cascade", "--clt", clt_folder, "--limit", "4"]
    assert "--layers contains 8" in refused(*args, "--layers", "6-8")


def test_occupied_out_is_left_alone(refused: Callable[..., str], tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "not empty" in refused("train", *SMALL, "--out", tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwrite_replaces_only_its_own(clt_folder: Path, tmp_path: Path):
    out = tmp_path / "clt"
    shutil.copytree(clt_folder, out)
    (out / "notes.txt").write_text("mine")
    assert main(["train", *SMALL, "--seed", "7", "--out", str(out), "--overwrite"]) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "metrics.json").read_text())["context"]["seed"] == 7


def test_out_beneath_a_file(refused: Callable[..., str], tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused("train", "--out", tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("damage", ["truncated", "config", "no weights", "no config", "shapes"])
def test_damaged_clt(damage: str, clt_folder: Path, refused: Callable[..., str], tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(clt_folder, broken)
    weights, config = broken / "model.safetensors", broken / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "config":
        config.write_text("{")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        config.unlink()
    else:
        tensors = load_file(weights)
        tensors["b_dec"] = tensors["b_dec"][:, :5].contiguous()
        save_file(tensors, weights)
    sentence = refused("contributions", "--clt", broken, "--out", tmp_path / "out")
    assert str(broken) in sentence or "config.json" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["weights_sha256", "activation", "hook_in"])
def test_clt_of_another_teacher(
    field: str,
    clt_folder: Path,
    refused: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    other = tmp_path / "other"
    clt = CrossLayerTranscoder.from_pretrained(clt_folder)
    teacher = replace(clt.config.teacher, **{field: "something else"})
    clt.config = replace(clt.config, teacher=teacher)
    clt.save_pretrained(other)
    args = ["reconstruct", "--clt", other, "--limit", "4", "--out", tmp_path / "out"]
    sentence = refused(*args)
    assert field in sentence
    assert "--any-teacher" in sentence
    capsys.readouterr()
    assert main([*map(str, args), "--any-teacher"]) == 0
    warning = f"Teacher: not the one trained on; the CLT was trained on digits (None) with {field} "
    assert f"WARNING: {warning}" in capsys.readouterr().out
    out = tmp_path / "out"
    context = json.loads((out / "metrics.json").read_text())["context"]
    assert context["teacher"].startswith(warning)
    page = (out / "reconstruction.html").read_text()
    assert f"<strong>Warning:</strong> {warning}" in page.split("<main")[0]
    for ending in ("json", "md", "tex"):
        text = (out / f"reconstruction.{ending}").read_text()
        assert "Teacher: not the one trained on" in text


def test_a_pickle_that_is_not_tensors(refused: Callable[..., str], tmp_path: Path):
    class Payload:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"state_dict": Payload()}, tmp_path / "weights.pt")
    args = ["train", "--model", "ViT-B-32", "--pretrained", tmp_path / "weights.pt"]
    refused(*args, "--out", tmp_path / "out")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_nan_weights_are_refused_before_writing(refused: Callable[..., str], tmp_path: Path):
    from vit_clt.teachers import shipped_teacher

    teacher = tmp_path / "teacher"
    shutil.copytree(str(shipped_teacher("digits")).removeprefix("local-dir:"), teacher)
    tensors = load_file(teacher / "open_clip_model.safetensors")
    tensors["visual.transformer.resblocks.2.mlp.c_proj.bias"][0] = float("nan")
    save_file(tensors, teacher / "open_clip_model.safetensors")
    out = tmp_path / "out"
    args = ["--model", f"local-dir:{teacher}", "--data", "digits", *SMALL]
    sentence = refused("train", *args, "--out", out)
    assert "blocks." in sentence
    assert "NaN" in sentence
    assert not out.exists()


def test_a_write_that_fails_half_way(clt_folder: Path, tmp_path: Path):
    args = ["--clt", str(clt_folder), "--limit", "4"]
    full = At("vit_clt.outputs:OutputFolder.open", 1, partial(limit_file_size, 100_000))
    found = trained(args, tmp_path / "out", [full], command="contributions")
    assert found.code == 2
    assert "contributions.html cannot be written" in found.sentence
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
