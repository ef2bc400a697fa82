"""Fidelity against sparsity, recomputed from public tensors, and the command that measures it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders import noisy_digits, random_clt, tiny_clip
from sklearn.metrics import r2_score
from transformer_lens.hook_points import HookPoint

from vit_clt import (
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    ReLUTopK,
    TrainConfig,
    ZeroShot,
    train,
)
from vit_clt.analysis import fidelity
from vit_clt.analysis.fit.fidelity_study import Fidelity
from vit_clt.analysis.reporting.study import study_files
from vit_clt.analysis.stats.intervals import bootstrap_means
from vit_clt.cli import main
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT, replace_mlps

N, LAYERS, SEED = 30, 8, 3
ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}


@dataclass(frozen=True)
class Study:
    vit: HookedViT
    clts: dict[str, CrossLayerTranscoder]
    data: TensorImages
    zs: ZeroShot
    x: torch.Tensor
    y: torch.Tensor
    result: Fidelity


@pytest.fixture(scope="module")
def study(digits_vit: HookedViT, digits_test: ImageData) -> Study:
    data = noisy_digits(digits_test, N, 16)
    clts = {
        f"{'clt' if cross_layer else 'plt'}_k{k}": train(
            digits_vit,
            data,
            CLTConfig(LAYERS, 64, 96, ReLUTopK(k), cross_layer=cross_layer),
            TrainConfig(lr=5e-3, epochs=2, batch_size=170),
            progress=False,
        ).requires_grad_(False)
        for k in (3, 9)
        for cross_layer in (True, False)
    }
    _, cache = digits_vit.run_with_cache(data.images)
    x, y = (
        torch.stack([cache[f"blocks.{l}.{name}"] for l in range(LAYERS)])
        for name in ("ln2.hook_out", "hook_mlp_out")
    )
    zs = ZeroShot(digits_vit, data.class_names, "single")
    result = fidelity(digits_vit, clts.items(), data, zs, seed=SEED)
    return Study(digits_vit, clts, data, zs, x, y, result)


# ---- the numbers -----------------------------------------------------------------------------


def test_reconstruction_and_size_are_what_the_tensors_say(study: Study):
    assert study.result.frame["name"].tolist() == list(study.clts)
    for (name, clt), (_, row) in zip(
        study.clts.items(), study.result.frame.iterrows(), strict=True
    ):
        assert row["cross_layer"] == clt.config.cross_layer == name.startswith("clt")
        assert row["k"] == clt.config.sparsifier.k
        assert row["parameters"] == sum(p.numel() for p in clt.parameters())
        codes = clt.encode(study.x)
        y_hat = clt.decode(codes)
        for kind in ("cls", "patch"):
            pairs = [
                (y[:, ROWS[kind]].double().numpy(), found[:, ROWS[kind]].double().numpy())
                for y, found in zip(study.y, y_hat, strict=True)
            ]
            whole = [
                r2_score(*(v.reshape(-1, 64) for v in pair), multioutput="variance_weighted")
                for pair in pairs
            ]
            # each position's own mean: every (position, dimension) is an output of its own
            own = [
                r2_score(*(v.reshape(N, -1) for v in pair), multioutput="variance_weighted")
                for pair in pairs
            ]
            assert row[f"r2_{kind}"] == pytest.approx(np.mean(whole), abs=1e-5)
            assert row[f"r2_position_{kind}"] == pytest.approx(np.mean(own), abs=1e-5)
        l0 = (codes.to_dense() != 0).double().sum(-1).mean((1, 2))
        assert row["l0"] == pytest.approx(float(l0.mean()))
        silent = (codes.to_dense() == 0).flatten(1, 2).all(1)
        assert row["dead"] == pytest.approx(float(silent.double().mean()))
        read = l0.cumsum(0) if clt.config.cross_layer else l0
        assert row["codes_read"] == pytest.approx(float(read.mean()))
        assert row["codes_read_last"] == pytest.approx(float(read[-1]))
    clt, plt = (study.result.frame.iloc[i] for i in (0, 1))
    assert clt["codes_read_last"] == pytest.approx(LAYERS * plt["codes_read_last"], rel=0.05)


def test_readings_are_those_of_the_replaced_model(study: Study):
    def per_image(embeddings: torch.Tensor) -> list[np.ndarray]:
        outcome = study.zs.read(embeddings, study.data.labels)
        return [outcome.correct.double().numpy(), outcome.loss.double().numpy()]

    def at_mean(y: torch.Tensor, hook: HookPoint) -> torch.Tensor:
        # of the unaltered model
        return study.y[int(hook.name.split(".")[1])].mean(0).expand_as(y)

    images = study.data.images
    hooks = [(f"blocks.{l}.hook_mlp_out", at_mean) for l in range(LAYERS)]
    original = per_image(study.vit.encode_image(images))
    floor = per_image(study.vit.run_with_hooks(images, fwd_hooks=hooks))
    for (_, clt), row in zip(
        study.clts.items(), study.result.frame.to_dict("records"), strict=True
    ):
        with replace_mlps(study.vit, clt, layers=range(LAYERS), tokens="all"):
            replaced = per_image(study.vit.encode_image(images))
        for i, measure in enumerate(("top1", "loss")):
            value, unaltered, mean = (v[i] for v in (replaced, original, floor))
            assert row[measure] == pytest.approx(value.mean(), abs=1e-4)
            assert row[f"{measure}_baseline"] == pytest.approx(unaltered.mean(), abs=1e-4)
            assert row[f"{measure}_floor_mean"] == pytest.approx(mean.mean(), abs=1e-4)
            found = [row[f"recovered_{measure}_{end}"] for end in ("low", "high")]
            draws = bootstrap_means(np.stack([value, unaltered, mean], 1), SEED)
            low, high = np.quantile(draws[:, 1] - draws[:, 2], [0.025, 0.975])
            if low <= 0 <= high:
                # accuracy, of so few images; the loss shows the difference
                assert measure == "top1"
                assert np.isnan([row["recovered_top1"], *found]).all()
                continue
            share = (value.mean() - mean.mean()) / (unaltered.mean() - mean.mean())
            assert row[f"recovered_{measure}"] == pytest.approx(share, abs=1e-3)
            shares = (draws[:, 0] - draws[:, 2]) / (draws[:, 1] - draws[:, 2])
            assert found == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=2e-3)
            assert found[0] < found[1]
        assert row["n"] == N


def test_rows_of_one_kind_alone(study: Study):
    name, clt = next(iter(study.clts.items()))
    found = fidelity(study.vit, [(name, clt)], study.data, study.zs, tokens="cls", seed=SEED)
    l0 = (clt.encode(study.x[:, :, :1]).to_dense() != 0).double().sum(-1).mean()
    assert found.frame["l0"].item() == pytest.approx(float(l0))
    with replace_mlps(study.vit, clt, layers=range(LAYERS), tokens="cls"):
        outcome = study.zs.read(study.vit.encode_image(study.data.images), study.data.labels)
    assert found.frame["loss"].item() == pytest.approx(float(outcome.loss.mean()), abs=1e-4)
    # the same reconstruction, whatever is replaced
    for column in ("r2_patch", "dead"):
        assert found.frame[column].item() == study.result.frame[column].iloc[0]
    of_cls = (clt.encode(study.x[:, :, :1]).to_dense() == 0).flatten(1, 2).all(1)
    assert found.frame["dead"].item() < float(of_cls.double().mean())


def test_metrics_carry_floor_baseline_and_interval(study: Study):
    found = {metric.name: metric for metric in study.result.metrics()}
    row = study.result.frame.iloc[1]
    assert row["name"] == "plt_k3"
    loss, share = found["plt_k3_loss"], found["plt_k3_recovered_loss"]
    assert (loss.value, loss.low, loss.high) == (row["loss"], row["loss_low"], row["loss_high"])
    assert (loss.floor, loss.baseline) == (row["loss_floor_mean"], row["loss_baseline"])
    assert (share.value, share.floor, share.baseline) == (row["recovered_loss"], 0.0, 1.0)
    assert share.low == row["recovered_loss_low"] < share.high
    assert found["plt_k3_parameters"].value == study.clts["plt_k3"].config.n_parameters()
    assert all(metric.n == N for metric in found.values())


def test_names_must_be_told_apart_and_there_must_be_one(study: Study):
    pair = next(iter(study.clts.items()))
    with pytest.raises(InputError, match='clts holds "clt_k3" twice'):
        fidelity(study.vit, [pair, pair], study.data, study.zs)
    with pytest.raises(InputError, match="clts is empty"):
        fidelity(study.vit, [], study.data, study.zs)


@pytest.fixture(scope="module")
def silent(digits_vit: HookedViT, digits_test: ImageData) -> Fidelity:
    """Of a model whose MLPs say the same everywhere: floor and unaltered model are one."""
    clip = tiny_clip()
    for block in clip.visual.transformer.resblocks:
        block.mlp.c_proj.weight.data.zero_()
    vit = HookedViT(clip, model="tiny")
    images = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    data = TensorImages(images, torch.arange(12) % 3, list("abc"), name="noise")
    vit.tokenizer = lambda texts: torch.randint(
        1, 60, (len(texts), 8), generator=torch.Generator().manual_seed(len(texts[0]))
    )
    return fidelity(vit, [("plt", random_clt(vit))], data, ZeroShot(vit, data.class_names))


def test_nothing_is_recovered_where_there_is_nothing_to_recover(silent: Fidelity):
    for measure in ("top1", "loss"):
        for end in ("", "_low", "_high"):
            assert isnan(silent.frame[f"recovered_{measure}{end}"].item())
    values = {metric.name: metric.value for metric in silent.metrics()}
    assert isnan(values["plt_recovered_loss"])
    assert not isnan(values["plt_loss"])
    table = silent.shown()
    assert table["loss recovered %"].item() == table["R² CLS"].item() == "undefined"
    notes = [a.text for a in silent.figure().layout.annotations]
    assert sum("unaltered − floor contains 0" in text for text in notes) == 2
    assert sum("do not vary" in text for text in notes) == 2


# ---- the figure and the page -----------------------------------------------------------------


def test_the_figure_tells_kinds_floors_and_model_apart(study: Study):
    figure = replace(study.result, trained_on="more digits, seed 0").figure()
    shown = {trace.name: trace for trace in figure.data if trace.showlegend}
    assert set(shown) == {
        "CLT",
        "per-layer",
        "unaltered model",
        "floor: MLP rows at their mean",
        "floor: MLP rows at zero",
    }
    assert shown["CLT"].line.dash == "solid"
    assert shown["per-layer"].line.dash == "dash"
    assert shown["CLT"].line.color != shown["per-layer"].line.color
    title = figure.layout.title.text
    for part in (
        "noisy digits",
        "trained on more digits, seed 0",
        f"N = {N}",
        "relu_topk, F = 96",
        f"seed {SEED}",
        "stream",
    ):
        assert part in title
    assert figure.layout.xaxis.type == figure.layout.xaxis6.type == "log"
    # what is drawn is what was measured, in the panel whose title says so
    frame = study.result.frame[study.result.frame["cross_layer"]].sort_values("l0")
    panels = {a.text: i for i, a in enumerate(figure.layout.annotations)}
    drawn = [trace for trace in figure.data if trace.name == "CLT"]
    recovered = drawn[panels["loss recovered (%)"]]
    assert list(recovered.x) == frame["l0"].tolist()
    assert list(recovered.y) == pytest.approx(100 * frame["recovered_loss"])
    bars = recovered.error_y
    assert np.add(recovered.y, bars.array) == pytest.approx(100 * frame["recovered_loss_high"])
    assert list(drawn[panels["R², CLS rows"]].y) == pytest.approx(frame["r2_cls"].tolist())


def test_the_page_says_what_equal_k_hides(study: Study):
    page = study.result.page()
    assert "At equal k the kinds are not equals" in page
    table = study.result.shown()
    assert table["codes read a target, mean (last)"].iloc[1] == "3.0 (3.0)"
    assert table["parameters"].iloc[0] == f"{study.clts['clt_k3'].config.n_parameters():,}"


# ---- the command -----------------------------------------------------------------------------

SMALL = ["--limit", "12", "--train-limit", "40", "--epochs", "1", "--n-features", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fidelity") / "out"
    assert main(["fidelity", *SMALL, "--k", "2", "--lr", "0.002", "--out", str(out)]) == 0
    return out


def test_the_command_trains_both_kinds_and_goes_on(folder: Path, capsys):
    document = json.loads((folder / "metrics.json").read_text())
    assert document["context"]["data"] == "digits (test)"
    assert document["context"]["trained_on"] == "digits (train), 40 images, seed 0"
    assert set(document["context"]["l0"]) == {"clt_k2", "plt_k2"}
    configs = {
        name: json.loads((folder / "runs" / name / "config.json").read_text())
        for name in ("clt_k2", "plt_k2")
    }
    assert [configs[name]["cross_layer"] for name in configs] == [True, False]
    assert json.loads((folder / "runs/plt_k2/run.json").read_text())["options"]["training"][
        "lr"
    ] == pytest.approx(0.002)
    assert CrossLayerTranscoder.from_pretrained(folder / "runs/plt_k2").W_dec[0].shape[0] == 1

    before = (folder / "runs/clt_k2/model.safetensors").stat().st_mtime_ns
    command = ["fidelity", *SMALL, "--lr", "0.002", "--out", str(folder)]
    (folder / "notes.txt").write_text("mine")
    (folder / "fidelity.png").write_text("mine too")
    assert main([*command, "--k", "2", "4", "--kinds", "plt", "--resume"]) == 0
    assert "plt_k2 is finished" in capsys.readouterr().out
    assert (folder / "runs/clt_k2/model.safetensors").stat().st_mtime_ns == before
    assert pd.read_csv(folder / "fidelity.csv")["name"].tolist() == ["plt_k2", "plt_k4"]
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "fidelity.png").read_text() == "mine too"
    # a run whose weights are lost is trained again, from its last checkpoint
    weights = folder / "runs/plt_k2/model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    assert main([*command, "--k", "2", "--kinds", "plt", "--resume"]) == 0
    assert weights.read_bytes() == whole
    assert sorted(path.name for path in folder.parent.iterdir()) == ["out"]
    # other options are another study
    assert main([*command, "--k", "2", "--lr", "0.001", "--resume"]) == 2
    assert "lr is 0.001" in capsys.readouterr().err
    assert main([*command, "--k", "2"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_command_measures_what_is_there(folder: Path, tmp_path: Path, capsys):
    clts = [str(folder / "runs" / name) for name in ("clt_k2", "plt_k2")]
    out = tmp_path / "out"
    args = ["fidelity", "--clts", *clts, "--limit", "12", "--tokens", "cls", "--out", str(out)]
    assert main(args) == 0
    frame = pd.read_csv(out / "fidelity.csv")
    assert frame["name"].tolist() == ["clt_k2", "plt_k2"]
    assert {f.name for f in out.iterdir()} == {*study_files(Fidelity)} - {"fidelity.png"}
    printed = capsys.readouterr().out
    assert "N = 12, cls rows of all layers" in printed
    assert "L0" in printed
    assert main(args) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--k and --clts are both missing; expected one"),
        (["--k", "4", "--clts", "a"], "--k and --clts are both set"),
        (["--k", "4", "4"], "--k holds 4 twice"),
        (["--k", "0"], "k is 0; expected at least 1"),
        (["--k", "4", "64", "--n-features", "32"], "k is 64; expected at most n_features, 32"),
        (["--k", "4", "--l0", "5"], "--l0 is 5.0; expected only with sparsifier jumprelu"),
        (
            ["--k", "4", "--sparsifier", "jumprelu", "--l0", "5"],
            "--l0 is 5.0; expected --k, which each run is steered to",
        ),
        (["--clts", str(Path(__file__).parent)], "expected a config.json in it"),
        (["--clts", "nowhere", "--resume"], "--resume is set with --clts"),
        (["--k", "4", "--resume", "--overwrite"], "--overwrite and --resume are both set"),
        (["--k", "4", "--split", "train"], "data is digits (train), the images trained on"),
        (
            ["--k", "4", "--sparsifier", "jumprelu", "--aux-k", "3"],
            "--aux-k is 3; expected only",
        ),
        (["--k", "4", "--kinds"], 'kinds is empty; expected "clt", "plt" or both'),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    options: list[str], message: str, tmp_path: Path, capsys
):
    out = tmp_path / "out"
    assert main(["fidelity", *options, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_clt_of_another_model_is_named(folder: Path, tmp_path: Path, capsys):
    config = CLTConfig(3, 64, 8, ReLUTopK(2))
    CrossLayerTranscoder(config).save_pretrained(tmp_path / "other")
    clts = [str(folder / "runs/clt_k2"), str(tmp_path / "other")]
    assert main(["fidelity", "--clts", *clts, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'other'}: the CLT is for 3 layers" in error
    assert not (tmp_path / "out").exists()


def test_several_processes_are_sent_to_train(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["fidelity", "--k", "4", "--out", str(tmp_path / "out")]) == 2
    assert "processes are 2; expected one" in capsys.readouterr().err
