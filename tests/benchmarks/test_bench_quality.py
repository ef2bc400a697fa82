"""Peers' weights become CLTs with the same outputs; the race's rows are those of our trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vit_clt import CLTConfig, ReLUTopK, load_data, train
from vit_clt.hooks import HookedViT

FOLDER = Path(__file__).parents[2] / "benchmarks"
LAYERS, D, FEATURES, K, ROWS = 3, 6, 20, 4, 50


@pytest.fixture
def race(monkeypatch):
    """The modules of the race, importable as its script imports them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import bench_quality
    import measure

    monkeypatch.setattr(measure.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return bench_quality


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normal(LAYERS, ROWS, D, seed=0)


def lm_saes_weights(thresholds):
    weights = {
        "W_E": normal(LAYERS, D, FEATURES, seed=1),
        "b_E": normal(LAYERS, FEATURES, seed=2),
        "scale_x": normal(LAYERS, seed=3).abs() + 0.5,
        "scale_y": normal(LAYERS, seed=4).abs() + 0.5,
    }
    for l in range(LAYERS):
        weights[f"W_D.{l}"] = normal(l + 1, FEATURES, D, seed=10 + l)
        weights[f"b_D.{l}"] = normal(D, seed=20 + l)
    if thresholds:
        name = "activation_function.log_jumprelu_threshold"
        weights[name] = normal(LAYERS, FEATURES, seed=5)
    return weights


def lm_saes_outputs(w, x):
    """y^ as its documentation has it: normalise, encode, gate, decode, denormalise."""
    a = torch.einsum("lrd,ldf->lrf", x * w["scale_x"][:, None, None], w["W_E"]) + w["b_E"][:, None]
    theta = w.get("activation_function.log_jumprelu_threshold")
    if theta is not None:
        z = a * (a > theta.exp()[:, None])
    else:
        positive = a.relu()
        z = torch.zeros_like(a).scatter(-1, *reversed(positive.topk(K)))
    return torch.stack(
        [
            (sum(z[s] @ w[f"W_D.{l}"][s] for s in range(l + 1)) + w[f"b_D.{l}"]) / w["scale_y"][l]
            for l in range(LAYERS)
        ]
    )


def decode_clt_weights():
    weights = {"theta_manager.log_threshold": normal(LAYERS, FEATURES, seed=1)}
    for i, end in enumerate(("in", "tg")):
        weights[f"mean_{end}"] = normal(LAYERS, D, seed=2 + i)
        weights[f"std_{end}"] = normal(LAYERS, D, seed=4 + i).abs() + 0.5
    for s in range(LAYERS):
        encoder = f"encoder_module.encoders.{s}"
        weights[f"{encoder}.weight"] = normal(FEATURES, D, seed=10 + s)
        weights[f"{encoder}.bias_param"] = normal(FEATURES, seed=20 + s)
        for l in range(s, LAYERS):
            decoder = f"decoder_module.decoders.{s}->{l}"
            weights[f"{decoder}.weight"] = normal(D, FEATURES, seed=30 + 10 * s + l)
            weights[f"{decoder}.bias_param"] = normal(D, seed=60 + 10 * s + l)
    return weights


def decode_clt_outputs(w, x):
    """y^ as its documentation has it; every pair of layers is a linear map with a bias."""
    normalised = (x - w["mean_in"][:, None]) / w["std_in"][:, None]
    codes, outputs = [], []
    for s in range(LAYERS):
        encoder = f"encoder_module.encoders.{s}"
        a = normalised[s] @ w[f"{encoder}.weight"].T + w[f"{encoder}.bias_param"]
        codes.append(a * (a >= w["theta_manager.log_threshold"][s].exp()))
    for l in range(LAYERS):
        decoders = [f"decoder_module.decoders.{s}->{l}" for s in range(l + 1)]
        y = sum(
            z @ w[f"{name}.weight"].T + w[f"{name}.bias_param"]
            for z, name in zip(codes, decoders, strict=False)
        )
        outputs.append(y * w["std_tg"][l] + w["mean_tg"][l])
    return torch.stack(outputs)


PEERS = {
    "lm-saes, top-k": ("lm-saes", lm_saes_weights(False), lm_saes_outputs),
    "lm-saes, thresholds": ("lm-saes", lm_saes_weights(True), lm_saes_outputs),
    "decode-clt": ("decode-clt", decode_clt_weights(), decode_clt_outputs),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_converted_clt_has_the_outputs_of_the_peers_formula(race, name):
    import conversions

    package, weights, outputs = PEERS[name]
    clt = conversions.CONVERSIONS[package](weights, K)
    y_hat = outputs(weights, X)
    assert clt(X).dtype == torch.float64
    torch.testing.assert_close(clt(X), y_hat, rtol=1e-10, atol=1e-10)
    assert conversions.difference(clt, X, y_hat) < 1e-12


@pytest.mark.parametrize("name", PEERS)
def test_outputs_that_are_not_the_peers_are_refused(race, tmp_path, name):
    import conversions
    from quality_task import CHECKED_FILE, WEIGHTS_FILE

    package, weights, outputs = PEERS[name]
    y_hat = outputs(weights, X)
    save_file({n: w.contiguous() for n, w in weights.items()}, tmp_path / WEIGHTS_FILE)
    save_file({"x": X, "y_hat": y_hat}, tmp_path / CHECKED_FILE)
    clt, found = conversions.converted(tmp_path, package, K)
    assert found < 1e-12
    torch.testing.assert_close(clt(X.float()), y_hat.float(), rtol=1e-4, atol=1e-4)
    y_hat[-1, -1, -1] += 1e-3 * y_hat.abs().max()
    save_file({"x": X, "y_hat": y_hat}, tmp_path / CHECKED_FILE)
    with pytest.raises(
        ValueError, match=f"{package}: y\\^ of the converted CLT differs by 1.0e-03"
    ):
        conversions.converted(tmp_path, package, K)


def test_peers_get_the_batches_of_our_trainer(race, tmp_path, monkeypatch):
    from quality_rows import settings_of, write_batches
    from quality_task import Batches

    from vit_clt.training.run import Run
    from vit_clt.training.store import ActivationStore

    vit = HookedViT.load("digits")
    data = load_data("digits", vit=vit, split="train", limit=1024)
    settings = settings_of("small", 2, 3, len(data), vit.cfg.n_tokens)
    seen = []
    step = Run.train_on

    def spy(self, batch, logging):
        seen.append((batch.x.clone(), batch.y.clone()))
        return step(self, batch, logging)

    monkeypatch.setattr(Run, "train_on", spy)
    config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 32, ReLUTopK(2))
    train(vit, data, config, settings, cache=tmp_path / "store", progress=False)
    store = ActivationStore(tmp_path / "store", vit, data, progress=False)
    write_batches(tmp_path / "batches.safetensors", vit, store, len(data), settings)
    batches = Batches(str(tmp_path / "batches.safetensors"))
    assert batches.steps == len(seen) == settings.n_steps(len(data), vit.cfg.n_tokens)
    for number, (x, y) in enumerate(seen):
        for mine, theirs in zip((x, y), batches[number], strict=True):
            assert torch.equal(mine, theirs)
    with pytest.raises(ValueError, match="--images: found 1000"):
        settings_of("small", 1, 0, 1000, 17)


def test_equal_time_is_the_first_point_with_as_much(race):
    from quality_table import at

    curve = [{"step": 1, "cpu": 1.0}, {"step": 2, "cpu": 3.0}, {"step": 3, "cpu": 9.0}]
    assert [at(curve, budget)["step"] for budget in (0.5, 1.0, 1.1, 9.0, 10.0)] == [1, 1, 2, 3, 3]


def test_a_race_of_ours_is_measured_once_and_kept(race, tmp_path, capsys):
    arguments = ["--model", "digits", "--data", "digits", "--images", "512", "--held-out", "40"]
    arguments += ["--n-features", "32", "--k", "4", "--epochs", "1", "--seeds", "0"]
    arguments += ["--only", "ours, per layer", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        race.main(arguments)
    assert ended.value.code == 0
    assert "lm-saes: skipped" in capsys.readouterr().out
    path = tmp_path / "ours-per_layer-0.json"
    record = json.loads(path.read_text())
    assert record["curve"][-1]["step"] == 17
    assert record["curve"][0]["cpu"] < record["curve"][-1]["cpu"]
    # what was recorded at the end and what the saved CLT does are one thing
    assert record["curve"][-1]["fvu_patch"] == pytest.approx(record["fvu_patch"], rel=1e-4)
    assert record["l0"] == pytest.approx(4, abs=0.1)
    assert set(record["readings"]) == {"replaced", "unaltered", "mean", "zero"}
    made = path.stat().st_mtime_ns
    with pytest.raises(SystemExit) as ended:
        race.main(arguments)
    assert ended.value.code == 0
    assert path.stat().st_mtime_ns == made
    assert "| ours, per layer |" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        race.main([*arguments, "--n-features", "64"])
    assert ended.value.code == 2
    assert "holds another race" in capsys.readouterr().err.splitlines()[-1]
