from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from builders import random_clt

from vit_clt import CLTConfig, InputError, JumpReLU, ReLUTopK
from vit_clt.data.images import TensorImages
from vit_clt.forecast import memory as memory_module
from vit_clt.training import cost as module
from vit_clt.training import trial
from vit_clt.training.cost import Estimate, check_resources, estimate
from vit_clt.training.store import store_bytes
from vit_clt.training.trial import seconds_per_step
from vit_clt.transcoder.sparsifiers import TopKTraining
from vit_clt.transcoder.train_config import TrainConfig

GIB = 2**30
PAPER = CLTConfig(12, 768, 12288, ReLUTopK(128))
FITS = Estimate(
    {"weights": 2, "optimiser": 4, "teacher": 1000}, {"result": 5, "activation store": 0}
)

# Two steps as training takes them, in a process of its own each, forked before torch computes:
# memory's high-water mark above what was there before. The allocator gives freed arrays back at
# once, so that only live ones count.
STEPS = """
import json, os, sys, torch
from vit_clt import CLTConfig, CrossLayerTranscoder, JumpReLU, ReLUTopK
from vit_clt.transcoder.sparsifiers.jumprelu import tanh_penalty

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

def steps(layers, rows, d, features, k, backend, parts):
    sparsifier = ReLUTopK(k) if k else JumpReLU()
    clt = CrossLayerTranscoder(CLTConfig(layers, d, features, sparsifier), backend)
    optimiser = torch.optim.AdamW(clt.parameters(), fused=True)
    for _ in range(2):
        optimiser.zero_grad()
        batch = torch.randn(2, layers, rows, d)
        for part in batch.split(rows // parts, 2):
            x, y = part[0] * 1.0, part[1] * 1.0
            codes = clt.encode(x)
            y_hat = clt.decode(codes)
            loss = (y_hat - y).square().sum(-1).mean()
            (loss if k else loss + tanh_penalty(clt, codes, 4.0)).backward()
        optimiser.step()

def measure(options):
    steps(2, 16, 8, 32, 4, options["backend"], 1)  # what torch loads when it is first used
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    steps(**options)
    print(status("VmHWM") - before, flush=True)

for options in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        measure(options)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def of_tiny(settings: TrainConfig, n_images: int = 10**6, **given: object) -> Estimate:
    config = CLTConfig(4, 16, 24, ReLUTopK(4))
    return estimate(
        config, settings, n_images=n_images, n_tokens=10, teacher_parameters=100, **given
    )


# ---- memory ----------------------------------------------------------------------------------


MEASURED = [(32, "sparse", 2048, 1), (32, "dense", 1024, 2), (0, "dense", 256, 1)]


@pytest.fixture(scope="module")
def measured() -> dict[tuple, int]:
    """Bytes that each of `MEASURED` takes."""
    options = [
        {"layers": 4, "d": 192, "features": 3072}
        | dict(zip(("k", "backend", "rows", "parts"), each, strict=True))
        for each in MEASURED
    ]
    done = subprocess.run(
        [sys.executable, "-c", STEPS, json.dumps(options)],
        env={"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(zip(MEASURED, map(int, done.stdout.split()), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", MEASURED)
def test_steps_take_the_memory_that_was_estimated(case, measured):
    k, backend, rows, parts = case
    found = estimate(
        CLTConfig(4, 192, 3072, ReLUTopK(k) if k else JumpReLU()),
        TrainConfig(batch_size=rows, backend=backend, accumulate=parts),
        n_images=1,
        n_tokens=1,
        teacher_parameters=0,
    ).memory
    expected = sum(found[part] for part in ("weights", "gradients", "optimiser", "step"))
    assert 0.9 * measured[case] < expected < 1.6 * measured[case]


def test_the_papers_size_is_what_was_measured():
    found = estimate(PAPER, TrainConfig(), n_images=10**6, n_tokens=50, teacher_parameters=0).memory
    arrays = found["weights"] + found["gradients"]
    assert arrays + found["optimiser"] == pytest.approx(13.6e9, rel=0.002)
    # docs/performance.md: peaks of 7.51 and 13.9 GiB, 0.53 GiB of each torch itself
    assert 0.95 < (arrays + found["step"]) / (6.98 * GIB) < 1.2
    assert 0.95 < (arrays + found["optimiser"] + found["step"]) / (13.37 * GIB) < 1.2


def test_moments_in_8_bits_take_a_quarter():
    full, small = (
        estimate(
            PAPER, TrainConfig(optimiser=name), n_images=1, n_tokens=1, teacher_parameters=0
        ).memory["optimiser"]
        for name in ("adamw", "adamw8bit")
    )
    assert full == 8 * PAPER.n_parameters()
    assert small / full == pytest.approx(0.25, rel=0.02)


def test_the_buffer_holds_its_batches_a_group_of_images_and_a_batch():
    settings = TrainConfig(batch_size=100, buffer_batches=3)
    a_row = 2 * 4 * 4 * 16  # x and y, float32, 4 layers of width 16
    rows = 3 * 100 + 128 * 10 + 100
    assert of_tiny(settings).memory["shuffle buffer"] == rows * a_row
    # shards have a group of their own, wherever they live
    sharded = replace(settings, shards=4)
    assert of_tiny(sharded).memory["shuffle buffer"] == (rows + 3 * 1280) * a_row
    alone = of_tiny(sharded, processes=4).memory["shuffle buffer"]
    assert 4 * alone == (rows + 3 * 1280) * a_row
    # and never more than there is
    assert of_tiny(settings, n_images=7).memory["shuffle buffer"] == 70 * a_row


def test_options_lower_what_they_are_said_to_lower():
    before = estimate(PAPER, TrainConfig(), n_images=10**6, n_tokens=50, teacher_parameters=1)
    for smaller in (
        TrainConfig(batch_size=1024),
        TrainConfig(accumulate=8),
        TrainConfig(buffer_batches=4),
        TrainConfig(optimiser="adamw8bit"),
    ):
        after = estimate(PAPER, smaller, n_images=10**6, n_tokens=50, teacher_parameters=1)
        changed = {part for part in after.memory if after.memory[part] != before.memory[part]}
        if smaller.accumulate > 1:
            # gradients of a second part need room of their own: no gain where they outweigh rows
            assert changed == {"step", "teacher pass"}
        else:
            assert sum(after.memory.values()) < sum(before.memory.values())


def test_on_a_gpu_auto_is_dense_and_k_start_counts():
    cpu, gpu, dense = (
        of_tiny(TrainConfig(backend=backend), device=device).memory["step"]
        for backend, device in (("auto", "cpu"), ("auto", "cuda"), ("dense", "cpu"))
    )
    assert cpu != gpu == dense
    few, many = (
        of_tiny(TrainConfig(backend="sparse", sparsity=TopKTraining(k_start=k))).memory["step"]
        for k in (None, 20)
    )
    assert few == cpu < many


# ---- disk ------------------------------------------------------------------------------------


def test_disk_holds_checkpoints_the_one_being_written_result_and_cache():
    weights = 4 * CLTConfig(4, 16, 24, ReLUTopK(4)).n_parameters()
    found = of_tiny(TrainConfig(keep_checkpoints=2), n_images=50, cache=True).disk
    assert found["checkpoints"] == 3 * 3 * weights
    assert found["result"] == weights
    assert found["activation store"] == store_bytes(50, 4, 10, 16)
    without = of_tiny(TrainConfig(checkpoint_every=0), n_images=50).disk
    assert without == {"checkpoints": 0, "result": weights, "activation store": 0}


# ---- refusing --------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many bytes of memory and disk."""

    def given(memory: int, disk: int) -> None:
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda: SimpleNamespace(available=memory), raising=True
        )
        monkeypatch.setattr(memory_module, "cgroup_room", lambda root: [2**62])
        monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk))

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return given


def test_what_fits_exactly_is_taken(machine, tmp_path):
    machine(6, 5)  # the teacher is in memory already
    check_resources(FITS, out=tmp_path / "not" / "yet", device=torch.device("cpu"))


def test_too_little_memory_is_refused_with_what_would_help(machine, tmp_path):
    machine(10**9, 10**12)
    found = Estimate({"weights": 10**9, "optimiser": 2 * 10**9, "teacher": 0}, {})
    with pytest.raises(InputError, match=r"about 3\.0 GB .*1\.0 GB free.*batch_size") as error:
        check_resources(found, out=tmp_path, device=torch.device("cpu"))
    for option in ("buffer_batches", "n_features", "adamw8bit"):
        assert option in str(error.value)
    with pytest.raises(InputError) as error:
        check_resources(
            Estimate({"weights": 2 * 10**9, "optimiser": 10**9, "teacher": 0}, {}),
            out=tmp_path,
            device=torch.device("cpu"),
        )
    assert "adamw8bit" not in str(error.value)


def test_processes_of_one_machine_share_its_memory(machine, tmp_path, monkeypatch):
    machine(11, 5)
    check_resources(FITS, out=tmp_path, device=torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="times 2"):
        check_resources(FITS, out=tmp_path, device=torch.device("cpu"))


def test_too_little_disk_is_refused_naming_the_folder_that_exists(machine, tmp_path):
    machine(10**9, 4)
    with pytest.raises(InputError, match="keep_checkpoints") as error:
        check_resources(FITS, out=tmp_path / "not" / "yet", device=torch.device("cpu"))
    assert f"{tmp_path} has" in str(error.value)
    assert "cache" not in str(error.value)


# ---- words and seconds -----------------------------------------------------------------------


def test_two_lines_say_all_parts_that_are_not_nothing():
    memory, disk = Estimate(
        {"weights": 3_400_000_000, "step": 20_000_000, "teacher": 0}, {"result": 3_400_000}
    ).lines()
    assert memory == "memory: about 3.4 GB a process (weights 3.4 GB, step 20 MB)"
    assert disk == "disk: up to 3.4 MB (result 3.4 MB)"


@pytest.fixture
def photos() -> TensorImages:
    return TensorImages(torch.randn(30, 3, 12, 12, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("sparsifier", [ReLUTopK(4), JumpReLU()])
def test_timing_leaves_weights_gradients_and_random_numbers_alone(tiny_vit, photos, sparsifier):
    clt = random_clt(tiny_vit, sparsifier).requires_grad_(True)
    before = {name: p.detach().clone() for name, p in clt.named_parameters()}
    state = torch.get_rng_state()
    assert seconds_per_step(tiny_vit, clt, photos, TrainConfig()) > 0
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in clt.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_seconds_follow_the_line_through_both_trials(tiny_vit, photos, monkeypatch):
    def run(**given: object) -> float:
        # 16 images of 10 rows; 64 rows; 160 rows, which is all there are; one AdamW stand-in
        clock = iter([1.6, 2.0 + 64 * 0.01, 2.0 + 160 * 0.01, 7.0])
        monkeypatch.setattr(trial, "fastest", lambda work, device: next(clock))
        settings = TrainConfig(batch_size=1000, accumulate=given.pop("accumulate", 1))
        clt = random_clt(tiny_vit).requires_grad_(True)
        return seconds_per_step(tiny_vit, clt, photos, settings, **given)

    assert run() == pytest.approx(2.0 + 1000 * (0.01 + 0.01) + 7.0)
    assert run(processes=4) == pytest.approx(2.0 + 250 * 0.02 + 7.0)
    assert run(cache=True) == pytest.approx(2.0 + 1000 * 0.01 + 7.0)
    assert run(accumulate=3) == pytest.approx(3 * 2.0 + 1000 * 0.02 + 7.0)
