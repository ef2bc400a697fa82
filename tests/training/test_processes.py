"""Two processes train the CLT that one trains, and one that is lost takes the other along."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from builders import UNREADABLE_ROWS, digits_parquet
from oracles.run_train import DIES, IS_ASKED_TO_STOP, At, Ended, Started, trained
from safetensors.torch import load_file

# 12 steps an epoch; rows wait from one filling of the buffers to the next
RUN = [
    *("--limit", "400", "--n-features", "64", "--k", "4", "--epochs", "2", "--batch-size", "512"),
    *("--buffer-batches", "2", "--checkpoint-every", "6", "--log-every", "1", "--shards", "2"),
    *("--k-start", "8", "--aux-k", "8", "--dead-tokens", "1000", "--cls-weight", "3"),
    *("--clip", "50", "--accumulate", "2", "--backend", "dense"),
    *("--skip", "--matryoshka", "16", "32", "--stream-share", "0.3"),
]
STEPS = 24
DDP = {"ACCELERATE_USE_CPU": "true"}
FSDP = {**DDP, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
LAUNCH_FSDP = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: NO_WRAP
machine_rank: 0
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: true
"""
STEP = "vit_clt.training.run:Run.train_on"
NUMBERS = ("loss", "l0", "dead", "fvu", "grad_norm", "aux")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    found = trained(RUN, out)
    assert found.code == 0, found.err
    return out


@dataclass(frozen=True)
class Pair:
    """What became of two processes, each with an output folder of its own."""

    how: dict[str, str]
    outs: tuple[Path, Path]
    ends: tuple[Ended, Ended]


@pytest.fixture(scope="module", params=[DDP, FSDP], ids=["ddp", "fsdp"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The run of two processes that nothing befell."""
    folder = tmp_path_factory.mktemp("pair")
    outs = folder / "run", folder / "other"
    with two(RUN, outs, request.param) as (main, other):
        ends = main.ended(), other.ended()
    for found in ends:
        assert found.code == 0, found.err
    return Pair(request.param, outs, ends)


@contextmanager
def two(
    args: Sequence[str],
    outs: Sequence[Path],
    how: dict[str, str],
    at: Sequence[Sequence[At]] = ((), ()),
) -> Iterator[list[Started]]:
    """Two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as stack:
        started = []
        for rank in ("0", "1"):
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = Started(args, outs[int(rank)], at[int(rank)], {**how, **world, **place})
            started.append(stack.enter_context(process))
        yield started


def trained_by_two(
    args: Sequence[str],
    out: Path,
    how: dict[str, str],
    at: Sequence[Sequence[At]] = ((), ()),
) -> tuple[Ended, Ended]:
    """Two processes, from their start to their end."""
    with two(args, (out, out), how, at) as (main, other):
        return main.ended(), other.ended()


def steps(out: Path) -> dict[int, dict]:
    """The last record of every step."""
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return {r["step"]: r for r in records if "event" not in r}


def starts(out: Path) -> list[int]:
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [r["step"] for r in records if r.get("event") == "start"]


def checkpoints(out: Path) -> list[int]:
    return sorted(int(f.name.removeprefix("step-")) for f in (out / "checkpoints").glob("step-*"))


def assert_same_training(out: Path, one: Path) -> None:
    """Every step, and the weights at the end, but for rounding."""
    found, expected = steps(out), steps(one)
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    assert max(r["aux"] for r in expected.values()) > 0
    for step, record in found.items():
        for name in NUMBERS:
            assert record[name] == pytest.approx(expected[step][name], rel=1e-4), (step, name)
        assert record["tokens"] == expected[step]["tokens"]
    weights = load_file(out / "model.safetensors")
    for name, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)
    for name in ("config.json", "README.md", "training.html", "metrics.json"):
        assert (out / name).is_file()


# ---- the same training --------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_as_one_and_only_the_first_writes(pair: Pair, one: Path):
    assert_same_training(pair.outs[0], one)
    assert json.loads((pair.outs[0] / "run.json").read_text())["processes"] == 2
    assert "saved to" in pair.ends[0].out
    assert pair.ends[1].out == ""
    assert not pair.outs[1].exists()


@pytest.mark.slow
def test_accelerate_launches_two_sharded_processes(one: Path, tmp_path: Path):
    (tmp_path / "fsdp.yaml").write_text(LAUNCH_FSDP)
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "fsdp.yaml")]
    out = tmp_path / "run"
    found = subprocess.run(
        [sys.executable, *launch, "-m", "vit_clt", "train", *RUN, "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert_same_training(out, one)
    assert found.stdout.count("saved to") == 1


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_stop_together_and_end_with_the_same_bytes(pair: Pair, tmp_path: Path):
    out = tmp_path / "run"
    for found in trained_by_two(RUN, out, pair.how, ([], [At(STEP, 5, IS_ASKED_TO_STOP)])):
        assert found.code == 1
        assert "stopped after step 5" in found.err
    assert checkpoints(out) == [5]
    for found in trained_by_two([*RUN, "--resume"], out, pair.how):
        assert found.code == 0, found.err
    assert starts(out) == [0, 5]
    weights = (out / "model.safetensors").read_bytes()
    assert weights == (pair.outs[0] / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("how", "lost"), [(DDP, 0), (FSDP, 1)], ids=["ddp", "fsdp"])
def test_a_lost_process_ends_the_other_and_one_goes_on(
    how: dict[str, str], lost: int, one: Path, tmp_path: Path
):
    out = tmp_path / "run"
    dies = [At(STEP, 8, DIES)]
    ends = trained_by_two(RUN, out, how, ([], dies) if lost else (dies, []))
    assert ends[lost].code == -signal.SIGKILL
    assert ends[1 - lost].code == 1, ends[1 - lost].err
    assert checkpoints(out) == [6]
    assert trained([*RUN, "--resume"], out).code == 0
    assert starts(out) == [0, 6]
    assert_same_training(out, one)


@pytest.mark.parametrize("how", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_two_processes_go_on_with_what_one_began(how: dict[str, str], one: Path, tmp_path: Path):
    out = tmp_path / "run"
    assert trained(RUN, out, [At(STEP, 8, DIES)]).code == -signal.SIGKILL
    for found in trained_by_two([*RUN, "--resume"], out, how):
        assert found.code == 0, found.err
    assert starts(out) == [0, 6]
    assert_same_training(out, one)


# ---- one of two in trouble ----------------------------------------------------------------------


def test_images_that_either_process_skips_are_counted(tmp_path: Path):
    digits_parquet(tmp_path / "train.parquet")
    data = ["--data", f"parquet:{tmp_path / 'train.parquet'}", "--image-column", "image"]
    few = ["--epochs", "1", "--norm-images", "20", "--unreadable", "skip", "--log-every", "1"]
    small = ["--n-features", "32", "--k", "4", "--batch-size", "1024", "--shards", "2"]
    for found in trained_by_two([*data, *few, *small], tmp_path / "run", DDP):
        assert found.code == 0, found.err
    assert [r["skipped"] for r in steps(tmp_path / "run").values()][-1] == len(UNREADABLE_ROWS)


def test_a_process_that_comes_late_finds_the_folder_begun(tmp_path: Path):
    out = tmp_path / "run"

    late = At("vit_clt.outputs:OutputFolder.__init__", 1, _Until(out / "run.json"))
    with two(RUN, (out, out), DDP, ([], [late])) as (main, other):
        for process in (other, main):
            found = process.ended()
            assert found.code == 0, found.err


class _Until:
    """Wait until a file is there."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self) -> None:
        while not self.path.exists():
            time.sleep(0.02)
