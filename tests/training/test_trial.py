"""Which back end "auto" becomes on a GPU, decided by a trial that no test may time for real."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vit_clt import CLTConfig, JumpReLU, ReLUTopK, TrainConfig
from vit_clt.data.images import TensorImages
from vit_clt.errors import Stopped
from vit_clt.training import trainer as training
from vit_clt.training import trial
from vit_clt.training.trainer import resolved, train

CONFIG = CLTConfig(3, 8, 32, ReLUTopK(4))
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(("dense", "sparse"), [(1.0, 2.0), (2.0, 1.0)])
def test_the_faster_of_two_steps_of_the_real_shape_is_taken(monkeypatch, dense, sparse):
    seen: list[tuple[str, tuple[int, ...], str]] = []
    clock = {"dense": dense, "sparse": sparse}

    def timed(step, device):
        clt, x, y, _ = step.args
        step()
        seen.append((clt.backend, tuple(x.shape), torch.get_float32_matmul_precision()))
        assert not torch.equal(x, y)
        return clock[clt.backend]

    monkeypatch.setattr(trial, "fastest", timed)
    state = torch.get_rng_state()
    settings = TrainConfig(precision="tf32")
    found = trial.faster_backend(CONFIG, settings, CPU, rows=20)
    assert found == min(clock, key=clock.__getitem__)
    assert seen == [("dense", (3, 20, 8), "high"), ("sparse", (3, 20, 8), "high")]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_back_end_that_fails_its_trial_loses_with_a_warning(monkeypatch):
    def timed(step, device):
        if step.args[0].backend in broken:
            raise RuntimeError("no C compiler")
        return 1.0

    monkeypatch.setattr(trial, "fastest", timed)
    broken = ["sparse"]
    with pytest.warns(RuntimeWarning, match='backend "sparse" failed its trial: no C compiler'):
        assert trial.faster_backend(CONFIG, TrainConfig(), CPU, rows=4) == "dense"
    broken = ["dense"]
    with pytest.warns(RuntimeWarning, match='backend "dense"'):
        assert trial.faster_backend(CONFIG, TrainConfig(), CPU, rows=4) == "sparse"
    broken = ["dense", "sparse"]
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="no C compiler"):
        trial.faster_backend(CONFIG, TrainConfig(), CPU, rows=4)


def test_only_top_k_on_a_gpu_takes_a_trial(monkeypatch):
    asked: list[int] = []

    def faster(config, settings, device, rows):
        asked.append(rows)
        return "sparse"

    monkeypatch.setattr(trial, "faster_backend", faster)
    auto = TrainConfig(batch_size=600, accumulate=3)
    # resolved without a trial first, as training does
    waiting = resolved(auto, CONFIG, GPU)
    assert waiting.backend == "auto"
    assert resolved(auto, CONFIG, GPU, 2, trial=True).backend == "sparse"
    assert asked == [100]  # the rows of one part of one process
    jump = replace(CONFIG, sparsifier=JumpReLU())
    for settings, config, device in (
        (resolved(auto, CONFIG, "cpu"), CONFIG, CPU),
        (replace(waiting, backend="dense"), CONFIG, GPU),
        (resolved(auto, jump, GPU), jump, GPU),
    ):
        assert resolved(settings, config, device, trial=True) == settings
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert resolved(waiting, CONFIG, GPU, trial=True).backend == "dense"
    assert asked == [100]


def test_a_resumed_run_keeps_the_choice_and_takes_no_trial(monkeypatch, tiny_vit, tmp_path):
    cfg = tiny_vit.cfg
    config = CLTConfig(cfg.n_layers, cfg.d_model, 32, ReLUTopK(4))
    data = TensorImages(torch.randn(8, 3, *cfg.image_size))
    settings = TrainConfig(batch_size=20, epochs=2, norm_images=4, checkpoint_every=1)
    chosen: list[str] = []

    def decide(settings, config, device, processes, *, trial):
        if settings.backend == "auto":
            chosen.append("dense")
            return "dense"
        return settings.backend

    monkeypatch.setattr(training, "decided_backend", decide)
    records: list[dict] = []

    def run(resume: bool, stop_after: int) -> None:
        train(
            tiny_vit,
            data,
            config,
            settings,
            checkpoints=tmp_path,
            resume=resume,
            on_log=records.append,
            should_stop=lambda: len(chosen) and stop_after > 0,
            progress=False,
        )

    with pytest.raises(Stopped):
        run(resume=False, stop_after=1)
    run(resume=True, stop_after=0)
    assert chosen == ["dense"]
    assert {r["backend"] for r in records if "backend" in r} == {"dense"}
