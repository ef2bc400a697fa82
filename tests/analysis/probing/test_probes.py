"""Linear probes: the closed form against its definition, toys whose answer is known, plumbing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import tells_itself
from scipy.stats import multivariate_normal

from vit_clt import InputError, ZeroShot, load_data
from vit_clt.analysis import causal_effects, probes
from vit_clt.analysis.factors.truth import Truth
from vit_clt.analysis.probing.discriminant import SHRINKAGES, Discriminant
from vit_clt.analysis.probing.places import Place, n_columns, probe_rows
from vit_clt.cli import main
from vit_clt.data.digits import adding_arrays
from vit_clt.data.images import ImageSubset, TensorImages
from vit_clt.hooks import HookedViT

N_TRAIN, N_TEST = 600, 300
ONE_HOT = np.eye(10)


def pairs(split: str, n: int) -> TensorImages:
    """The numbers of the adding data, on images that nothing reads."""
    arrays = adding_arrays(split)
    labels = torch.from_numpy(arrays.labels[:n])
    data = TensorImages(torch.zeros(n, 3, 12, 12), labels, list("0123456789"), f"pairs ({split})")
    data.split = split
    data.factors = {name: torch.from_numpy(getattr(arrays, name)[:n]) for name in ("left", "right")}
    return data


@pytest.fixture
def read_from(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let probes read given vectors, a function of the data's numbers, in place of a model's."""

    def install(rows_of: Any) -> None:
        def rows(vit: Any, data: TensorImages, layers: Any, *, progress: bool) -> Any:
            left, right = (data.factors[name].numpy() for name in ("left", "right"))
            found = {Place("cls", "x", 0): rows_of(left, right).astype(np.float32)}
            return found, data.labels.numpy()

        monkeypatch.setattr(sys.modules["vit_clt.analysis.probing.study"], "probe_rows", rows)

    return install


def test_a_probe_is_bayes_rule_with_one_shrunk_covariance() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, 200)
    rows = rng.normal(size=(200, 5)) + rng.normal(size=(3, 5))[values] @ rng.normal(size=(5, 5))
    rows[:, 2] = 7.0  # a column that does not vary tells nothing
    new = rows[:40] + rng.normal(size=(40, 5)) * [1, 1, 0, 1, 1]
    found, shrinkage = Discriminant(rows, seed=3).probe(values, 3, new)

    def by_hand(x: np.ndarray, v: np.ndarray, z: np.ndarray, shrinkage: float) -> np.ndarray:
        means = [x[v == k].mean(0) for k in range(3)]
        within = sum((x[v == k] - means[k]).T @ (x[v == k] - means[k]) for k in range(3)) / len(x)
        cov = (1 - shrinkage) * within + shrinkage * np.var(x, axis=0).mean() * np.eye(4)
        logs = [
            multivariate_normal(means[k], cov).logpdf(z) + np.log(np.mean(v == k)) for k in range(3)
        ]
        return np.stack(logs, 1) - np.logaddexp.reduce(logs, axis=0)[:, None]

    keep = [0, 1, 3, 4]
    x, z = ((each[:, keep] - rows[:, keep].mean(0)) / rows[:, keep].std(0) for each in (rows, new))
    held, fitted = np.split(np.random.default_rng(3).permutation(200), [40])
    losses = {
        s: -by_hand(x[fitted], values[fitted], x[held], s)[range(40), values[held]].mean()
        for s in SHRINKAGES
    }
    assert shrinkage == min(losses, key=losses.__getitem__)
    assert np.allclose(found, by_hand(x, values, z, shrinkage), atol=1e-10)


def test_layers_in_passes_of_their_own_are_probed_alike(tiny_vit: HookedViT) -> None:
    train, test = pairs("train", N_TRAIN), pairs("test", N_TEST)
    for seed, data in enumerate((train, test)):
        data.images = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(seed))
    options = {"factors": ["left"], "layers": [0, 1, 3]}
    together = probes(tiny_vit, train, test, **options)
    size = 4 * n_columns(tiny_vit, 1) * (N_TRAIN + N_TEST)
    # room for layers 1 and 3, but not for 0 and 1, as 0 has one place more; and for one layer
    for room in (2 * size, 0):
        apart = probes(tiny_vit, train, test, **options, kept_bytes=room)
        assert apart.probes == together.probes
        assert apart.floors == together.floors


def test_both_digits_give_no_sum(tiny_vit: HookedViT, read_from: Any) -> None:
    read_from(lambda left, right: np.hstack([ONE_HOT[left], ONE_HOT[right]]))
    result = probes(tiny_vit, pairs("train", N_TRAIN), pairs("test", N_TEST))
    found = {p.factor: p for p in result.probes}
    additive = result.floors["label"].additive
    assert found["left"].reading.top1 == found["right"].reading.top1 == 1
    assert found["left"].reading.loss < 0.01
    # the same numbers, so the floor itself
    assert found["label"].reading == additive
    assert additive is not None
    assert additive.top1 < 0.3
    assert additive.loss > 2.2
    assert result.floors["left"].additive is None
    # no fit finds it, but a linear map does better: ten intervals of left + right, 5 to 14
    centres = np.arange(5, 15)
    arrays = adding_arrays("test")
    scores = 2 * np.outer(arrays.left + arrays.right, centres) - centres**2
    by_hand = centres[scores.argmax(1)] % 10 == arrays.labels
    assert by_hand.mean() == pytest.approx(0.75, abs=0.01)
    # chance is the training images' most frequent value
    train, test = (pairs(*each).labels.numpy() for each in (("train", N_TRAIN), ("test", N_TEST)))
    share = np.bincount(train) / N_TRAIN
    assert result.floors["label"].chance == np.mean(test == share.argmax())
    assert result.floors["label"].chance_loss == pytest.approx(-np.log(share[test]).mean())
    assert 0.05 < found["left"].permuted < 0.16


def test_a_sum_that_is_there_is_read(tiny_vit: HookedViT, read_from: Any) -> None:
    read_from(lambda left, right: ONE_HOT[(left + right) % 10])
    result = probes(tiny_vit, pairs("train", N_TRAIN), pairs("test", N_TEST))
    top1 = {p.factor: p.reading.top1 for p in result.probes}
    assert top1["label"] == 1
    assert max(top1["left"], top1["right"]) < 0.3


def test_noise_and_constants_read_at_chance(tiny_vit: HookedViT, read_from: Any) -> None:
    noise = np.random.default_rng(1).normal(size=(N_TRAIN, 6))
    read_from(lambda left, right: noise[: len(left)])
    train, test = pairs("train", N_TRAIN), pairs("test", N_TEST)
    [found] = probes(tiny_vit, train, test, factors=["label"]).probes
    assert found.reading.top1.low < 0.13
    assert found.reading.top1 < 0.17
    assert found.reading.top1.low <= found.reading.top1 <= found.reading.top1.high
    # rounding is no information
    read_from(lambda left, right: 1 + 1e-9 * noise[: len(left)])
    result = probes(tiny_vit, train, test, factors=["left"])
    [found] = result.probes
    assert found.reading.top1 == result.floors["left"].chance == found.permuted
    assert found.reading.loss == pytest.approx(result.floors["left"].chance_loss)


def test_what_is_read_is_the_models_own(tiny_vit: HookedViT, images: torch.Tensor) -> None:
    data = TensorImages(images, torch.arange(6))
    data.batch_size = 4
    found, labels = probe_rows(tiny_vit, data, [0, 2])
    _, cache = tiny_vit.run_with_cache(images)
    assert labels.tolist() == list(range(6))
    assert {(p.stage, p.layer) for p in found} == {
        ("resid_pre", 0),
        *((stage, l) for stage in ("resid_mid", "resid_post", "x", "y") for l in (0, 2)),
    }
    names = {"x": "ln2.hook_out", "y": "hook_mlp_out"}
    for (tokens, stage, l), rows in found.items():
        full = cache[f"blocks.{l}.{names.get(stage, f'hook_{stage}')}"]
        if tokens == "cls":
            expected = full[:, 0]
        else:
            # a grid of 3 by 3: the middle column belongs to the left
            left, right = [1, 2, 4, 5, 7, 8], [3, 6, 9]
            expected = torch.cat([full[:, left].mean(1), full[:, right].mean(1)], 1)
        assert rows.shape == (6, 16 if tokens == "cls" else 32)
        assert np.allclose(rows, expected.numpy(), atol=1e-5)
    with pytest.raises(InputError, match="images have shape"):
        probe_rows(tiny_vit, TensorImages(torch.zeros(2, 3, 8, 8)), [0])


def test_bad_input_is_refused(tiny_vit: HookedViT, read_from: Any) -> None:
    read_from(lambda left, right: ONE_HOT[left])
    train, test = pairs("train", N_TRAIN), pairs("test", N_TEST)
    few = ImageSubset(train, range(50))
    constant = pairs("train", N_TRAIN)
    constant.factors = {**constant.factors, "left": torch.full((N_TRAIN,), 4)}
    same = pairs("test", N_TEST)
    same.factors = {**same.factors, "left": torch.full((N_TEST,), 4)}
    unknown = pairs("train", N_TRAIN)
    unknown.labels = torch.full((N_TRAIN,), -1)
    for args, options, message in (
        ((train, test), {"factors": ["top"]}, r'"top"; pairs \(test\) has left, right, label'),
        ((train, test), {"factors": []}, "factors is empty"),
        ((train, test), {"layers": 4}, "layers contains 4"),
        ((few, test), {}, 'factor "left" is . in . training images; expected at least 10'),
        ((constant, same), {}, 'factor "left" is 4 in every image'),
    ):
        with pytest.raises(InputError, match=message):
            probes(tiny_vit, *args, **options)
    with pytest.raises(InputError, match="labels are not known"):
        probes(tiny_vit, unknown, test, layers=0)


def test_command_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    out = tmp_path / "probe"
    args = ["probe", "--model", "adding", "--limit", "80", "--train-limit", "200", "--layers", "0"]
    assert main([*args, "--factors", "left", "label", "--out", str(out)]) == 0
    frame = pd.read_csv(out / "probe.csv")
    assert len(frame) == 2 * 2 * 5
    assert set(frame["factor"]) == {"left", "label"}
    # the class token starts the same in every image
    start = frame.query("stage == 'resid_pre' and tokens == 'cls'")
    assert start["top1"].tolist() == start["chance"].tolist()
    document = json.loads((out / "metrics.json").read_text())
    assert document["context"]["train_data"] == "adding (train)"
    assert document["context"]["n_train"] == 200
    named = {m["name"]: m for m in document["metrics"]}
    row = frame.query("factor == 'left' and tokens == 'patch' and stage == 'y'").iloc[0]
    for measure in ("top1", "loss"):
        assert named[f"left_patch_y_0_{measure}"]["value"] == pytest.approx(row[measure])
    assert named["left_patch_y_0_top1"]["floor"] == pytest.approx(row["permuted"])
    assert named["label_additive_top1"]["value"] == pytest.approx(
        frame["additive"].dropna().iloc[0]
    )
    # of two factors' floors the one that is harder to beat: higher accuracy, lower loss
    drawn = json.loads((out / "probe.json").read_text())["data"]
    levels = [t["y"][0] for t in drawn if t.get("name") == "best chance"]
    chance = frame["chance"].max() * 100, frame["chance_loss"].min()
    assert levels == pytest.approx([*chance, *chance])
    assert frame["chance_loss"].nunique() == 2
    assert "additive floor" in capsys.readouterr().out
    assert "Where can left, label be read linearly?" in (out / "probe.html").read_text()
    for bad, message in (
        (["--factors", "top"], 'factors is "top"; adding (test) has left, right, label'),
        (["--split", "train"], "expected held-out ones"),
    ):
        assert message in refused(*args[:5], *bad)


def test_truth_draws_and_tells_what_was_measured(tmp_path: Path) -> None:
    vit = HookedViT.from_open_clip("adding")
    train = load_data("adding", vit=vit, split="train", limit=200)
    data = load_data("adding", vit=vit, limit=6)
    probed = probes(vit, train, data, layers=[0, 7], factors=["label"])
    effects = causal_effects(vit, data, ZeroShot(vit, data.class_names, "single"))
    truth = Truth(probed, [effects], {"label": "the sum"})
    for study, tokens in ((probed, "cls, patch"), (truth, "cls patch")):
        context = tells_itself(study, tmp_path / study.name)
        assert (context["data"], context["split"]) == ("adding (test)", "test")
        assert (context["tokens"], context["l0"], context["seed"]) == (tokens, None, 0)
    assert context["fill"] == "mean"
    names = [metric.name for metric in truth.metrics()]
    assert len(names) == len(probed.metrics()) + len(effects.metrics())
    assert names[-1] == f"mlp_{effects.metrics()[-1].name}"
    # the ends of blocks, below the floors
    assert probed.printed()["place"].tolist() == ["chance", "additive floor"] + [
        f"{tokens} {at}"
        for at in ("resid_pre 0", "resid_post 0", "resid_post 7")
        for tokens in ("cls", "patch")
    ]
    figure = truth.figure()
    lines = {(t.name, t.yaxis): t for t in figure.data}
    frame = probed.to_frame().query("tokens == 'cls'").set_index(["stage", "layer"])
    shown = [
        ("resid_pre", 0),
        ("resid_mid", 0),
        ("resid_post", 0),
        ("resid_mid", 7),
        ("resid_post", 7),
    ]
    assert list(lines["the sum", "y"].x) == [0, 0.5, 1, 7.5, 8]
    assert list(lines["the sum", "y"].y) == pytest.approx(
        [100 * frame.loc[at, "top1"] for at in shown]
    )
    output = effects.to_frame().query("target == 'output' and path == 'total'")
    output = output.set_index(["measure", "layers"])["value"]
    assert list(lines["layers 0 to s", "y4"].y) == pytest.approx(
        [output["delta_loss", name] for name in ("0", *(f"0-{s}" for s in range(1, 8)))]
    )
    assert lines["layers s to the last", "y3"].y[7] == pytest.approx(
        100 * output["delta_top1", "7"]
    )
    assert "additive floor of the sum" in {name for name, _ in lines}
    # two layers together were not read
    assert "layers s and s + 1" not in {name for name, _ in lines}
    assert "unaltered: top-1" in figure.layout.title.text
    assert len(probed.shown()) == 2 + 2 * 9
    for studies, message in (
        ([], "ablated is empty"),
        ([replace(effects, readings=None)], "the effects hold no readings"),
        ([effects, replace(effects, n_layers=9)], "ablated holds effects of 9 layers; expected as"),
        ([replace(effects, n_layers=7)], "effects of 7 layers; .* probed layer 7 among them"),
        ([replace(effects, data="others")], r"effects on others; expected adding \(test\)"),
    ):
        with pytest.raises(InputError, match=message):
            Truth(probed, studies)
