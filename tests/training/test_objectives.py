"""The parts of the loss against float64 by hand, and the schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from assertions import close
from builders import noise, noisy_clt
from torch import Tensor

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, JumpReLU, ReLUTopK, TrainConfig
from vit_clt.kernels.codes import Codes, DenseCodes, RaggedCodes
from vit_clt.training.objective import (
    BACKENDS,
    Activity,
    Objective,
    learning_rate,
    reconstruction_loss,
)
from vit_clt.transcoder.sparsifiers import JumpReLUTraining, TopKTraining

L, D, F, T = 3, 4, 8, 11


def build(sparsifier, backend="dense") -> CrossLayerTranscoder:
    """Outputs of about the size that is rebuilt."""
    clt = noisy_clt(CLTConfig(L, D, F, sparsifier), backend=backend)
    for parameter in clt.parameters():
        parameter.data.mul_(0.6)
    return clt


def gradients(clt: CrossLayerTranscoder, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*clt.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    pairs = zip(names, parameters, found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in pairs}


def penalty_of(clt: CrossLayerTranscoder, codes: Codes) -> Tensor:
    sparsifier = clt.config.sparsifier
    options = JumpReLUTraining(sparsity_scale=3.0) if sparsifier.penalised else TopKTraining()
    return sparsifier.penalty(clt, codes, options)


def all_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance=None) -> None:
    for name, value in expected.items():
        close(found[name], value, tolerance)


# ---- reconstruction -----------------------------------------------------------------------------


def test_loss_is_a_weighted_mean_over_tokens_of_each_layer():
    error = noise(L, 6, D)
    weights = torch.tensor([5.0, 1, 1, 0.5, 1, 2], dtype=torch.float64)
    for l, found in enumerate(reconstruction_loss(error, weights, 10.5)):
        squares = [float((error[l, t] ** 2).sum()) for t in range(6)]
        expected = sum(w * e for w, e in zip(weights.tolist(), squares, strict=True)) / 10.5
        assert float(found) == pytest.approx(expected, rel=1e-12)


# ---- penalty ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["dense", "listed", "masked"])
def test_the_penalty_is_the_sum_of_tanh_of_codes_times_decoder_norms(layout):
    clt = build(JumpReLU(), "dense" if layout == "dense" else "sparse")
    clt.log_theta.data.sub_(1.0)
    x = noise(L, T, D)
    with patch("vit_clt.kernels.choose._LISTED", 1.0 if layout == "listed" else -1.0):
        codes = clt.encode(x)
    assert isinstance(codes, DenseCodes if layout == "dense" else RaggedCodes)
    assert layout == "dense" or (codes.band is not None) == (layout == "masked")
    dense = build(JumpReLU())
    dense.log_theta.data.sub_(1.0)
    expected = 0.0
    for s, z in enumerate(dense.encode(x).to_dense()):
        norms = torch.stack([dense.W_dec[s][:, i].flatten().norm() for i in range(F)])
        for token in z:
            for i in range(F):
                expected = expected + torch.tanh(3.0 * norms[i] * token[i])
    penalty = penalty_of(clt, codes)
    torch.testing.assert_close(penalty, expected)
    found, wanted = gradients(clt, penalty), gradients(dense, expected)
    all_close(found, wanted)
    assert all(g.any() for n, g in wanted.items() if n.startswith(("W_", "log_theta")))


@pytest.mark.parametrize("sparsifier", [ReLUTopK(k=3), AbsTopK(k=3)], ids=lambda s: s.name)
def test_top_k_pays_no_penalty(sparsifier):
    clt = build(sparsifier)
    assert float(penalty_of(clt, clt.encode(noise(L, T, D)))) == 0


# ---- dead features ------------------------------------------------------------------------------


def some_dead() -> Tensor:
    dead = torch.zeros(L, F, dtype=torch.bool)
    dead[0, [1, 4, 5]] = True
    dead[2, 6] = True  # fewer than k, and none in layer 1
    return dead


def rebuilt(clt, x: Tensor, error: Tensor, dead: Tensor, k: int) -> Tensor:
    """The same error token by token, without any code of the module's."""
    signed = isinstance(clt.config.sparsifier, AbsTopK)
    rows = []
    for l in range(L):
        candidates = dead[l].nonzero()[:, 0].tolist()
        for t in range(x.shape[1]):
            pre = {i: clt.W_enc[l][i] @ x[l, t] + clt.b_enc[l, i] for i in candidates}
            sizes = {i: float(a.detach().abs() if signed else a.detach()) for i, a in pre.items()}
            ranked = sorted(pre, key=sizes.__getitem__)[-k:]
            rest = error[l, t] if candidates else torch.zeros(D, dtype=torch.float64)
            for i in ranked:
                if sizes[i] > 0:
                    rest = rest + pre[i] * clt.W_dec[l][0, i]
            rows.append(rest)
    return torch.stack(rows).view(L, -1, D)


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("sparsifier", [ReLUTopK(k=3), AbsTopK(k=3)], ids=lambda s: s.name)
def test_dead_features_rebuild_what_is_left_over(sparsifier, k):
    clt, x, error, dead = build(sparsifier), noise(L, T, D), noise(L, T, D, seed=2), some_dead()
    found = sparsifier.auxiliary_error(clt, x, error, dead, TopKTraining(aux_k=k))
    expected = rebuilt(clt, x, error, dead, k)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # rounded to float32
    assert not found[1].any()
    assert found[0].any()
    grads = gradients(clt, found.square().sum())
    all_close(grads, gradients(clt, expected.square().sum()), 1e-5)


@pytest.mark.parametrize("sparsifier", [ReLUTopK(k=3), AbsTopK(k=3)], ids=lambda s: s.name)
def test_the_auxiliary_term_teaches_dead_features_alone(sparsifier):
    clt, x, y, dead = build(sparsifier), noise(L, T, D), noise(L, T, D, seed=2), some_dead()
    clt.b_enc.data[dead] = 0.5  # each fires on some token
    objective = Objective(clt, TrainConfig(sparsity=TopKTraining(aux_k=2, aux_weight=0.25)))
    rows = torch.ones(T, dtype=torch.float64), float(T), T, 0.0
    found, plain = objective(x, y, *rows, dead), objective(x, y, *rows, None)
    error = (clt(x) - y).detach()
    expected = 0.25 * rebuilt(clt, x, error, dead, 2).square().sum() / T
    torch.testing.assert_close(found["aux"], expected, rtol=1e-6, atol=1e-6)
    assert float(plain["aux"]) == 0
    torch.testing.assert_close(found["total"] - plain["total"], found["aux"])
    grads = gradients(clt, found["aux"])
    for l in range(L):
        assert torch.equal(grads[f"W_enc.{l}"].any(1), dead[l])
        assert torch.equal(grads[f"W_dec.{l}"][0].any(1), dead[l])
        assert not grads[f"W_dec.{l}"][1:].any()
    assert torch.equal(grads["b_enc"] != 0, dead)
    assert not grads["b_dec"].any()


# ---- the whole objective ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sparsifier", [ReLUTopK(k=3), AbsTopK(k=3), JumpReLU()], ids=lambda s: s.name
)
@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_parts_of_a_batch_sum_to_the_whole(sparsifier, backend):
    clt, x, y = build(sparsifier, backend), noise(L, T, D), noise(L, T, D, seed=2)
    jump = isinstance(sparsifier, JumpReLU)
    options = JumpReLUTraining(sparsity_scale=3.0) if jump else TopKTraining(aux_k=2)
    objective = Objective(clt, TrainConfig(sparsity=options))
    weights = torch.where(torch.arange(T) % 4 == 0, 5.0, 1.0).double()
    total = float(weights.sum()), T, 0.7, None if jump else some_dead()
    whole = objective(x, y, weights, *total)
    parts = [
        objective(x[:, rows], y[:, rows], weights[rows], *total)
        for rows in torch.arange(T).chunk(3)
    ]
    for name in ("loss_by_layer", "penalty", "aux", "total", "active"):
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name])
    assert torch.equal(torch.stack([part["fired"] for part in parts]).any(0), whole["fired"])
    summed = gradients(clt, sum(part["total"] for part in parts))
    all_close(summed, gradients(clt, whole["total"]), 1e-6)

    codes = clt.encode(x)
    error = clt(x) - y
    expected = (error.square().sum(-1) * weights).sum(1) / weights.sum()
    torch.testing.assert_close(whole["loss_by_layer"], expected, rtol=1e-6, atol=1e-6)
    assert float(whole["penalty"].detach()) == pytest.approx(
        0.7 * float(penalty_of(clt, codes).detach()) / T, rel=1e-9
    )
    assert (float(whole["penalty"].detach()) > 0) == jump
    sum_of_parts = whole["loss_by_layer"].sum() + whole["penalty"] + whole["aux"]
    torch.testing.assert_close(whole["total"], sum_of_parts)
    assert torch.equal(whole["active"], (codes.to_dense() != 0).sum((1, 2)))
    assert torch.equal(whole["fired"], (codes.to_dense() != 0).any(1))
    assert BACKENDS[int(whole["backend"])] == clt.backend_for(codes)
    torch.testing.assert_close(whole["y_hat"], clt(x).detach())
    assert not whole["y_hat"].requires_grad


# ---- schedules ----------------------------------------------------------------------------------


def rates(total: int, **settings: object) -> list[float]:
    at = learning_rate(TrainConfig(lr=2.0, **settings), total)
    return [at(step) for step in range(total)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_warms_up_in_a_line(schedule):
    found = rates(400, warmup_steps=10, lr_schedule=schedule)
    assert found[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert max(found) == pytest.approx(2.0)
    # at most 5 % of all steps, and none where none is asked for
    assert rates(400, lr_schedule=schedule)[:20] == pytest.approx([0.1 * i for i in range(1, 21)])
    assert rates(400, warmup_steps=0, lr_schedule=schedule)[0] == 2.0


def test_the_linear_schedule_falls_to_zero_over_its_share():
    found = rates(100, warmup_steps=0, decay_fraction=0.25)
    assert found[:76] == [2.0] * 76
    assert found[75:] == pytest.approx([2.0 * (100 - step) / 25 for step in range(75, 100)])
    assert rates(100, warmup_steps=0, decay_fraction=0.0) == [2.0] * 100


def test_the_cosine_schedule_falls_from_the_warm_up_on():
    found = rates(200, warmup_steps=10, lr_schedule="cosine")
    for step in (10, 57, 105, 199):
        assert found[step] == pytest.approx(1 + math.cos(math.pi * (step - 10) / 190))
    assert all(a > b for a, b in pairwise(found[10:]))
    assert found[-1] < 1e-3


def test_the_constant_schedule_stays():
    assert rates(100, warmup_steps=5, lr_schedule="constant")[4:] == [2.0] * 96


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_short_runs_learn_at_every_step(schedule, total):
    assert all(0 < rate <= 2.0 for rate in rates(total, lr_schedule=schedule))


def ks(k: int, total: int, options: TopKTraining) -> Callable[[int], int]:
    schedule = ReLUTopK(k=k).schedule(options, total)
    return lambda step: schedule.at(step).k


@pytest.mark.parametrize(("k_start", "k"), [(64, 4), (2, 10)])
def test_k_moves_in_a_line_and_stays(k_start, k):
    at = ks(k, 40, TopKTraining(k_start=k_start, k_ramp=0.5))
    assert [at(step) for step in range(20)] == pytest.approx(
        [k_start + (k - k_start) * step / 20 for step in range(20)], abs=0.5
    )
    assert {at(step) for step in range(20, 40)} == {k}
    assert all(isinstance(at(step), int) for step in range(40))
    assert at(0) == k_start


def test_without_a_start_k_is_fixed():
    assert {ks(7, 40, TopKTraining())(step) for step in range(40)} == {7}


def test_lambda_rises_over_its_share_of_the_steps():
    sparsity = JumpReLU().schedule(JumpReLUTraining(sparsity=0.8, sparsity_ramp=0.5), 20)
    assert not sparsity.steered
    found = []
    for step in range(20):
        found.append(sparsity.weight(step))
        sparsity.advance(None)
    assert found == pytest.approx([0.08 * step for step in range(10)] + [0.8] * 10)


@pytest.mark.parametrize("target", [3.0, 30.0])
def test_a_target_steers_lambda_until_it_is_met(target):
    sparsity = JumpReLU().schedule(JumpReLUTraining(sparsity=0.5, l0=target), 100)
    assert sparsity.weight(0) == 0.5
    assert sparsity.steered
    found = []
    for step in range(300):
        before = sparsity.weight(step)
        found.append(6.0 / before)  # fewer features where lambda is larger
        sparsity.advance(found[-1])
        assert (sparsity.weight(step) > before) == (found[-1] > target)
        assert abs(math.log(sparsity.weight(step) / before)) <= 0.05 + 1e-12
    resumed = JumpReLU().schedule(JumpReLUTraining(sparsity=0.5, l0=target), 100)
    resumed.load(sparsity.state())
    assert resumed.weight(300) == sparsity.weight(300)
    assert found[-1] == pytest.approx(target, rel=1e-3)


def test_no_active_feature_at_all_lowers_lambda_by_a_bounded_step():
    sparsity = JumpReLU().schedule(JumpReLUTraining(sparsity=0.5, l0=3.0), 100)
    sparsity.advance(0.0)
    assert sparsity.weight(1) == pytest.approx(0.5 * math.exp(-0.05))


def test_a_feature_is_dead_after_so_many_silent_rows():
    activity = Activity((2, 3), 100, torch.device("cpu"))
    fired = torch.tensor([[True, False, False], [False, False, True]])
    activity.count(~fired, 60)
    activity.count(fired, 39)
    assert not activity.dead().any()
    activity.count(fired, 61)
    assert torch.equal(activity.silent, torch.where(fired, 0, 100))
    assert torch.equal(activity.dead(), ~fired)
    activity.count(torch.ones_like(fired), 10)
    assert not activity.dead().any()
