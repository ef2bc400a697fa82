"""BatchTopK: codes chosen over a whole batch in training, at fitted thresholds everywhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from vit_clt import (
    BatchTopK,
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    TopKTraining,
    TrainConfig,
    train,
)
from vit_clt.cli import main
from vit_clt.data.images import TensorImages
from vit_clt.errors import Stopped
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.interchange.circuit_tracer import export_circuit_tracer, import_circuit_tracer
from vit_clt.kernels import chunks
from vit_clt.kernels.codes import DenseCodes, RaggedCodes
from vit_clt.training.objective import Objective
from vit_clt.training.trainer import resolved
from vit_clt.transcoder.model_card import model_card
from vit_clt.transcoder.sparsifiers.batch_topk import RATE

L, D, F, T, K = 3, 4, 8, 11, 2
each_backend = pytest.mark.parametrize("backend", ["dense", "sparse"])


def build(backend: str = "dense", k: int = K) -> CrossLayerTranscoder:
    """A float64 CLT whose every parameter is random."""
    clt = CrossLayerTranscoder(CLTConfig(L, D, F, BatchTopK(k)), backend=backend).double()
    for i, parameter in enumerate(clt.parameters()):
        parameter.data.copy_(0.6 * noise(*parameter.shape, seed=i))
    return clt


def chosen_by_hand(a: Tensor, k: int) -> set[tuple[int, int]]:
    """Row and feature of the k N largest positive entries of "token feature"."""
    units = [(float(v), t, i) for t, row in enumerate(a) for i, v in enumerate(row) if v > 0]
    return {(t, i) for _, t, i in sorted(units, reverse=True)[: k * len(a)]}


# ---- codes in training --------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("rows", [1, T])
def test_a_step_keeps_the_largest_of_the_batch_with_their_gradients(backend, rows, monkeypatch):
    # several chunks of rows, so that what waits is pruned on the way
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * F * 8)
    clt, x = build(backend), noise(L, rows, D).requires_grad_()
    codes = clt.encode_batch(x)
    assert isinstance(codes, DenseCodes if backend == "dense" else RaggedCodes)
    upstream = noise(L, rows, F, seed=9)
    z = codes.to_dense()
    z.backward(upstream)
    for l in range(L):
        a = (x[l] @ clt.W_enc[l].T + clt.b_enc[l]).detach()
        kept = chosen_by_hand(a, K)
        assert len(kept) == min(K * rows, int((a > 0).sum()))
        mask = torch.zeros_like(a)
        for t, i in kept:
            mask[t, i] = 1
        torch.testing.assert_close(z[l], mask * a)
        da = mask * upstream[l]
        torch.testing.assert_close(clt.W_enc[l].grad, da.T @ x[l].detach())
        torch.testing.assert_close(clt.b_enc.grad[l], da.sum(0))
        torch.testing.assert_close(x.grad[l], da @ clt.W_enc[l].detach())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.lists(st.integers(-3, 3), min_size=30, max_size=30),
)
def test_at_most_k_a_row_on_average_stay_whatever_the_ties(rows, k, entries):
    a = torch.tensor(entries[: rows * 6], dtype=torch.float64).reshape(rows, 6)
    z = BatchTopK(k)(a).to_dense()
    on = z != 0
    assert int(on.sum()) == min(k * rows, int((a > 0).sum()))
    assert torch.equal(z[on], a[on])
    dropped = a[~on]
    if on.any() and len(dropped):
        assert z[on].min() >= dropped.max()


@each_backend
def test_rows_that_need_more_features_get_them(backend):
    clt, x = build(backend), noise(L, T, D)
    x[:, 0] *= 20
    l0 = clt.encode_batch(x).l0()
    assert (l0.sum(1) == K * T).all()
    assert l0.min() < K < l0.max()


@each_backend
def test_no_rows_at_all(backend):
    clt, x = build(backend), torch.zeros(L, 0, D, dtype=torch.float64)
    for codes in (clt.encode(x), clt.encode_batch(x)):
        assert codes.to_dense().shape == (L, 0, F)
        clt.config.sparsifier.observe_(codes, clt.own_tensors())
    assert not clt.theta.any()


# ---- thresholds ---------------------------------------------------------------------------------


@each_backend
def test_thresholds_are_the_running_mean_of_the_smallest_entry_kept(backend):
    clt, theta = build(backend), torch.zeros(L, dtype=torch.float64)
    clt.b_enc.data[1] = -100  # a silent layer keeps what it has
    objective = Objective(clt, TrainConfig())
    for seed in range(4):
        x, y = noise(L, T, D, seed=seed), noise(L, T, D, seed=seed + 50)
        codes = clt.encode_batch(x).to_dense()
        for l in (0, 2):
            smallest = codes[l][codes[l] > 0].min()
            theta[l] = smallest if seed == 0 else theta[l] + RATE * (smallest - theta[l])
        objective(x, y, torch.ones(T, dtype=torch.float64), float(T), T, 0.0, None)
        torch.testing.assert_close(clt.theta, theta)
    before = clt.theta.clone()
    objective.eval()
    found = objective(x, y, torch.ones(T, dtype=torch.float64), float(T), T, 0.0, None)
    assert torch.equal(clt.theta, before), "evaluation changes nothing"
    torch.testing.assert_close(found["y_hat"], clt.decode(clt.encode(x)).detach())


@each_backend
def test_elsewhere_codes_are_the_pre_activations_above_the_threshold(backend):
    clt, x = build(backend), noise(L, T, D)
    pre = torch.stack([x[l] @ clt.W_enc[l].T + clt.b_enc[l] for l in range(L)])
    torch.testing.assert_close(clt.encode(x).to_dense(), pre.relu(), msg="before any step")
    clt.theta.copy_(torch.tensor([0.1, 0.4, 0.9]))
    expected = pre * (pre > clt.theta[:, None, None])
    torch.testing.assert_close(clt.encode(x).to_dense(), expected)
    assert clt.thresholds().tolist() == [[t] * F for t in clt.theta.tolist()]
    for l in range(L):
        torch.testing.assert_close(clt.encode(x[l], layer=l).to_dense(), expected[l])


@each_backend
@pytest.mark.parametrize("training", [True, False])
def test_a_row_does_not_depend_on_the_rows_beside_it(backend, training):
    clt, x = build(backend).train(training), noise(L, T, D)
    clt.theta.fill_(0.3)
    whole = clt.encode(x).to_dense()
    parts = torch.cat([clt.encode(part).to_dense() for part in x.split(3, 1)], 1)
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


def test_a_replacement_does_not_depend_on_the_batch(tiny_vit: HookedViT, images: Tensor):
    clt = CrossLayerTranscoder(CLTConfig(4, 16, 24, BatchTopK(4))).requires_grad_(False)
    clt.theta.copy_(torch.tensor([0.05, 0.1, 0.15, 0.2]))
    with replace_mlps(tiny_vit, clt, layers=range(4)):
        whole = tiny_vit(images)
        alone = torch.cat([tiny_vit(image[None]) for image in images])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)


# ---- runs ---------------------------------------------------------------------------------------

CONFIG = CLTConfig(4, 16, 24, BatchTopK(4))
HOW = TrainConfig(
    lr=1e-2,
    epochs=4,
    batch_size=48,
    log_every=1,
    val_images=2,
    checkpoint_every=3,
    sparsity=TopKTraining(k_start=8, aux_k=4),
    dead_tokens=60,
)


@pytest.fixture(scope="module")
def data() -> TensorImages:
    return TensorImages(torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_a_stopped_run_goes_on_to_the_same_bits(backend, tiny_vit, data, tmp_path: Path):
    how = replace(HOW, backend=backend)
    records: list[dict] = []
    whole = train(tiny_vit, data, CONFIG, how, on_log=records.append, progress=False)
    steps = [r for r in records if "event" not in r]
    assert steps[0]["l0"] == 8
    assert steps[-1]["l0"] == 4
    assert steps[-1]["sparsity"] is None
    assert steps[-1]["loss"] < steps[0]["loss"]
    l0 = [r["l0_by_layer"] for r in records if r.get("event") == "validation"]
    assert l0[-1] != [4.0] * 4, "held-out rows meet thresholds"
    asked = iter([False] * 6 + [True])
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(
            *(tiny_vit, data, CONFIG, how),
            checkpoints=folder,
            should_stop=lambda: next(asked),
            progress=False,
        )
    saved = load_file(sorted(folder.glob("step-*"))[-1] / "model.safetensors")
    assert (saved["theta"] > 0).all()
    resumed = train(tiny_vit, data, CONFIG, how, checkpoints=folder, resume=True, progress=False)
    expected = whole.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert (whole.theta > 0).all()
    assert whole.config.sparsifier == BatchTopK(4)


def test_a_batch_in_parts_is_refused():
    with pytest.raises(InputError, match=r"^accumulate is 2; expected 1, as batch_topk chooses"):
        resolved(TrainConfig(accumulate=2), CONFIG, "cpu")
    with pytest.raises(InputError, match=r"^processes is 4; expected 1, as batch_topk chooses"):
        resolved(TrainConfig(), CONFIG, "cpu", 4)


# ---- files --------------------------------------------------------------------------------------


def test_thresholds_are_saved_with_the_weights(tmp_path: Path):
    clt = build().float()
    clt.theta.copy_(torch.tensor([0.1, 0.4, 0.9]))
    clt.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["sparsifier"] == {"name": "batch_topk", "k": K}
    loaded = CrossLayerTranscoder.from_pretrained(tmp_path)
    x = noise(L, T, D).float()
    assert torch.equal(loaded.theta, clt.theta)
    assert torch.equal(loaded.encode(x).to_dense(), clt.encode(x).to_dense())
    assert "`batch_topk`, k = 2" in model_card(clt.config)
    parameters = sum(p.numel() for p in clt.parameters())
    assert clt.config.n_parameters() == parameters, "thresholds are not learned"


def test_files_of_circuit_tracer_hold_it_exactly(tmp_path: Path):
    clt = build().float().eval()
    clt.theta.copy_(torch.tensor([0.1, 0.4, 0.9]))
    assert export_circuit_tracer(clt, tmp_path) is clt
    for l in range(L):
        written = load_file(tmp_path / f"W_enc_{l}.safetensors")[f"threshold_{l}"]
        assert torch.equal(written, clt.theta[l].expand(F))
    read = import_circuit_tracer(tmp_path)
    x = noise(L, 50, D).float()
    assert torch.equal(read.encode(x).to_dense(), clt.encode(x).to_dense())


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = [
        *("train", "--model", "digits", "--data", "digits", "--limit", "40", "--epochs", "2"),
        *("--n-features", "64", "--batch-size", "256", "--sparsifier", "batch_topk", "--k", "4"),
    ]
    out = str(tmp_path / "clt")
    assert main([*options, "--k-start", "6", "--out", out]) == 0
    training = json.loads((tmp_path / "clt" / "metrics.json").read_text())["context"]["train"]
    assert training["sparsity"] == {"k_start": 6, "k_ramp": 0.2, "aux_k": 0, "aux_weight": 1 / 32}
    again = ["train", "--config", f"{out}/run.json", "--out", str(tmp_path / "again")]
    assert main(again) == 0
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("clt", "again")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    fit = ["reconstruct", "--clt", out, "--data", "digits", "--limit", "20"]
    assert main([*fit, "--out", str(tmp_path / "fit")]) == 0
    export = ["export", "--clt", out, "--out", str(tmp_path / "export")]
    assert main(export) == 0
    assert "batch_topk: weights and thresholds pass unchanged" in capsys.readouterr().out
    for option, sentence in (
        ("--accumulate 2", "accumulate is 2; expected 1, as batch_topk chooses"),
        ("--l0 3", "l0 is 3.0; expected only with sparsifier jumprelu."),
        ("--bandwidth 2", "bandwidth is 2.0; expected only with sparsifier jumprelu."),
    ):
        assert main([*options, *option.split(), "--out", str(tmp_path / "refused")]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
