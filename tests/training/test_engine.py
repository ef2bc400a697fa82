"""Optimiser state, precision and trackers of one process after another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from assertions import one_sentence
from builders import noise
from torch import Tensor, nn

from vit_clt import (
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    JumpReLU,
    ReLUTopK,
    TrainConfig,
    train,
)
from vit_clt.data.images import TensorImages
from vit_clt.seeding import seeded_globally
from vit_clt.training import engine as module
from vit_clt.training.engine import (
    Engine,
    gradient_norm,
    model_tensors,
    optimiser_tensors,
    restore,
    set_learning_rate,
)
from vit_clt.training.objective import Objective

CPU = torch.device("cpu")
T = 40


def prepared(engine: Engine, sparsifier=None, seed: int = 0):
    """(CLT, objective as the engine shares it, optimiser)."""
    with seeded_globally(seed):
        config = CLTConfig(3, 8, 16, sparsifier or ReLUTopK(k=4))
        clt = CrossLayerTranscoder(config, backend=engine.settings.backend)
    return clt, *engine.prepare(Objective(clt, engine.settings))


def step(engine: Engine, objective: nn.Module, optimiser, seed: int = 1) -> dict[str, Tensor]:
    x = noise(3, T, 8, seed=seed).float()
    optimiser.zero_grad()
    found = objective(x, x.roll(1, -1).relu(), torch.ones(T), float(T), T, 0.01, None)
    engine.accelerator.backward(found["total"])
    optimiser.step()
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# ---- state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsifier", [ReLUTopK(k=4), JumpReLU()], ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [0, 3])
def test_the_step_after_restoring_is_the_one_that_would_have_been(sparsifier, steps):
    settings = TrainConfig(lr=1e-2)
    with Engine(settings, CPU) as engine:
        clt, objective, optimiser = prepared(engine, sparsifier)
        step(engine, objective, optimiser)  # an optimiser's state begins with its first step
        for seed in range(steps):
            step(engine, objective, optimiser, seed)
        model = {name: v.clone() for name, v in model_tensors(clt).items()}
        state = {name: v.clone() for name, v in optimiser_tensors(clt, optimiser).items()}
        step(engine, objective, optimiser, seed=9)
        expected = model_tensors(clt), optimiser_tensors(clt, optimiser)
    with Engine(settings, CPU) as engine:
        other, objective, optimiser = prepared(engine, sparsifier, seed=5)
        restore(other, optimiser, model, state)
        assert_equal(model_tensors(other), model)
        assert_equal(optimiser_tensors(other, optimiser), state)
        assert all(p.grad is None for p in other.parameters())
        step(engine, objective, optimiser, seed=9)
        assert_equal(model_tensors(other), expected[0])
        assert_equal(optimiser_tensors(other, optimiser), expected[1])
    assert any(not torch.equal(model[name], expected[0][name]) for name in model)


def test_state_is_named_by_parameter_and_complete():
    with Engine(TrainConfig(), CPU) as engine:
        clt, objective, optimiser = prepared(engine, JumpReLU())
        assert optimiser_tensors(clt, optimiser) == {}
        step(engine, objective, optimiser)
        assert model_tensors(clt).keys() == clt.state_dict().keys()
        assert optimiser_tensors(clt, optimiser).keys() == {
            f"{name}/{key}"
            for name in clt.state_dict()
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
        assert not any(v.requires_grad for v in model_tensors(clt).values())


def test_a_parameter_that_is_missing_is_not_passed_over():
    with Engine(TrainConfig(), CPU) as engine:
        clt, objective, optimiser = prepared(engine)
        step(engine, objective, optimiser)
        model, state = model_tensors(clt), optimiser_tensors(clt, optimiser)
        del state["b_dec/exp_avg"]
        with pytest.raises(KeyError, match="b_dec/exp_avg"):
            restore(clt, optimiser, model, state)


def test_initialisation_is_the_seed_s_and_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    with seeded_globally(3):
        first = torch.randn(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    for seed, same in ((3, True), (4, False)):
        with seeded_globally(seed):
            assert torch.equal(torch.randn(4), first) == same


def test_of_several_gpus_all_keep_their_random_numbers_and_torch_has_no_warning(monkeypatch):
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    put_back: list[tuple[str, int]] = []
    for name, stand_in in (
        ("device_count", lambda: 2),
        ("get_rng_state", lambda device: f"state {device}"),
        ("set_rng_state", lambda state, device: put_back.append((state, device))),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    with seeded_globally(0):
        assert not put_back
    assert put_back == [("state 0", 0), ("state 1", 1)]


# ---- gradients and rates ------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.5, 1, 1e6])
def test_the_norm_is_of_the_whole_gradient_which_is_cut_to_clip(clip):
    parameters = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5))]
    idle = nn.Parameter(torch.zeros(2))
    before = [noise(3, 2).float(), noise(5, seed=2).float()]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient.clone()
    expected = torch.cat([g.flatten() for g in before]).double().norm()
    assert gradient_norm([*parameters, idle], clip) == pytest.approx(float(expected), rel=1e-6)
    scale = 1.0 if clip is None else min(1.0, clip / float(expected))
    for parameter, gradient in zip(parameters, before, strict=True):
        torch.testing.assert_close(parameter.grad, scale * gradient, rtol=1e-5, atol=1e-7)
    if scale == 1.0:
        assert torch.equal(parameters[0].grad, before[0])
    assert idle.grad is None


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_learning_rate_is_set_for_every_group_and_obeyed(as_tensor):
    lr = torch.tensor(1.0) if as_tensor else 1.0
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    groups = [{"params": [parameter]} for parameter in parameters]
    optimiser = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0, foreach=False)
    kept = [group["lr"] for group in optimiser.param_groups]
    set_learning_rate(optimiser, 0.25)
    for group, before in zip(optimiser.param_groups, kept, strict=True):
        assert float(group["lr"]) == 0.25
        assert not as_tensor or group["lr"] is before  # what compiled code holds on to
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    for parameter in parameters:  # the first step of Adam has the size of its rate
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, -0.25))


def test_the_learning_rate_reaches_a_prepared_optimiser():
    with Engine(TrainConfig(lr=1e-2), CPU) as engine:
        clt, objective, optimiser = prepared(engine)
        before = clt.b_dec.detach().clone()
        set_learning_rate(optimiser, 1e-3)
        step(engine, objective, optimiser)
        moved = (clt.b_dec.detach() - before).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=1e-3, atol=0)


# ---- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsifier", [ReLUTopK(k=4), JumpReLU()], ids=lambda s: s.name)
@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_bfloat16_trains_float32_weights(sparsifier, backend):
    first = {}
    for precision in ("fp32", "bf16"):
        settings = TrainConfig(lr=1e-2, precision=precision, backend=backend)
        with Engine(settings, CPU) as engine:
            clt, objective, optimiser = prepared(engine, sparsifier)
            found = [step(engine, objective, optimiser) for _ in range(40)]
        losses = [float(each["loss_by_layer"].detach().sum()) for each in found]
        assert losses[-1] < 0.7 * losses[0]
        assert {each["loss_by_layer"].dtype for each in found} == {torch.float32}
        assert {p.dtype for p in clt.parameters()} == {torch.float32}
        tensors = optimiser_tensors(clt, optimiser)
        assert {v.dtype for v in tensors.values()} == {torch.float32}
        first[precision] = losses[0]
    assert first["bf16"] == pytest.approx(first["fp32"], rel=0.03)
    assert backend == "sparse" or first["bf16"] != first["fp32"]


def test_one_engine_after_another_has_its_own_precision():
    for precision, expected in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        with Engine(TrainConfig(precision=precision), CPU) as engine:
            assert engine.accelerator.mixed_precision == expected
            assert (engine.n_processes, engine.rank, engine.is_main) == (1, 0, True)


def test_an_engine_after_one_that_failed_has_its_own_precision():
    def failing() -> None:
        with Engine(TrainConfig(precision="bf16"), CPU):
            raise InputError("lr is 0; expected more.")

    with pytest.raises(InputError, match="lr is 0"):
        failing()
    with Engine(TrainConfig(), CPU) as engine:
        assert engine.accelerator.mixed_precision == "no"


def test_the_next_engine_may_be_on_another_device(monkeypatch):
    # bf16 on a GPU after a run on the CPU silently computes in float32, and the other way round.
    with Engine(TrainConfig(), CPU) as engine:
        assert engine.accelerator.device.type == "cpu"
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")  # any device that every machine has
    with Engine(TrainConfig(precision="bf16"), torch.device("meta")) as engine:
        found = engine.accelerator.device.type
    PartialState._reset_state()
    assert found == "meta"


def test_tf32_is_refused_on_a_cpu():
    with pytest.raises(InputError) as error:
        Engine(TrainConfig(precision="tf32"), CPU)
    assert one_sentence(error) == 'precision is "tf32" on a CPU; expected a GPU, or "fp32".'


def test_tf32_lasts_as_long_as_the_engine():
    before = torch.get_float32_matmul_precision()
    with Engine(TrainConfig(precision="tf32"), torch.device("cuda")):  # set up, not used
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before == "highest"


# ---- what must be installed ---------------------------------------------------------------------


def test_a_tracker_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "get_available_trackers", lambda: ["wandb"])
    with pytest.raises(InputError) as error:
        Engine(TrainConfig(), CPU, ["tensorboard"], tmp_path)
    assert one_sentence(error) == (
        'trackers holds "tensorboard", which is not installed; expected its package: '
        "pip install 'vit-clt[tensorboard]'."
    )
    assert not list(Path(tmp_path).iterdir())


def test_trackers_are_known_by_the_names_that_accelerate_gives_them():
    available = module.get_available_trackers()
    assert all(str(name).islower() and "." not in str(name) for name in available)


def test_trackers_are_sent_numbers_only_and_finished():
    sent, finished = [], []
    tracker = SimpleNamespace(
        name="list",
        log=lambda values, step, **_: sent.append((values, step)),
        finish=lambda: finished.append(True),
    )
    with Engine(TrainConfig(), CPU) as engine:
        engine.log({"loss": 1.0}, 1)  # without trackers
        engine.accelerator.trackers = [tracker]
        engine.log({"step": 3, "loss": 0.5, "aux": None, "l0_by_layer": [1.0], "backend": "x"}, 3)
    assert sent == [({"step": 3, "loss": 0.5}, 3)]
    assert finished == [True]


def test_the_eight_bit_optimiser_names_its_package(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        Engine(TrainConfig(optimiser="adamw8bit"), CPU)
    assert one_sentence(error) == (
        "optimiser is \"adamw8bit\", which needs torchao: pip install 'vit-clt[lowbit]'."
    )


@pytest.mark.slow
def test_eight_bit_moments_learn_as_float_ones_do(tiny_vit):
    pytest.importorskip("torchao", reason="the extra lowbit is not installed")
    images = TensorImages(torch.randn(60, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
    config = CLTConfig(4, 16, 512, ReLUTopK(4))
    last = {}
    for optimiser in ("adamw", "adamw8bit"):
        records: list[dict] = []
        settings = TrainConfig(lr=5e-3, epochs=8, batch_size=60, log_every=1, optimiser=optimiser)
        train(tiny_vit, images, config, settings, on_log=records.append, progress=False)
        last[optimiser] = [r["loss"] for r in records if "event" not in r][-1]
    assert last["adamw8bit"] == pytest.approx(last["adamw"], rel=0.05)
