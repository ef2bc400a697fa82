"""Runs that are killed, stopped, refused or out of disk, and what is left to go on from."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from builders import UNREADABLE_ROWS, digits_parquet
from oracles.run_train import (
    DIES,
    IS_ASKED_TO_STOP,
    IS_INTERRUPTED,
    At,
    Ended,
    Started,
    limit_file_size,
    trained,
)
from safetensors.torch import load_file, save_file

import vit_clt

# 12 steps an epoch from two groups of images; rows wait from one filling of the buffer to the next
RUN = [
    *("--limit", "200", "--n-features", "64", "--k", "4", "--epochs", "2", "--batch-size", "256"),
    *("--buffer-batches", "2", "--checkpoint-every", "3", "--log-every", "1", "--workers", "0"),
]
STEPS = 24
EVERYTHING = [
    *("--k-start", "12", "--k-ramp", "0.5", "--aux-k", "8", "--dead-tokens", "600"),
    *("--cls-weight", "3", "--clip", "500", "--accumulate", "2", "--val-images", "20"),
    *("--skip", "--matryoshka", "16", "32", "--stream-share", "0.3", "--interventions", "0.4"),
    *("--unreadable", "skip", "--data", "parquet:{parquet}", "--image-column", "image"),
]
# what time a step took is no part of the result
TIMES = ("tokens_per_second", "waits", "seconds")

Uninterrupted = Callable[..., Path]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 digits, two of which cannot be read."""
    path = tmp_path_factory.mktemp("parquet") / "train.parquet"
    digits_parquet(path)
    return path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The folder of a run with these options that nothing befell."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    known: dict[tuple[str, ...], Path] = {}

    def run(*options: str) -> Path:
        if options not in known:
            out = folder / str(len(known))
            found = trained([*RUN, *options], out)
            assert found.code == 0, found.err
            known[options] = out
        return known[options]

    return run


@pytest.fixture(scope="module")
def cached(uninterrupted: Uninterrupted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run with a cache."""
    return uninterrupted("--cache", str(tmp_path_factory.mktemp("cached")))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `RUN` that was killed in its eighth step."""
    out = tmp_path_factory.mktemp("killed") / "run"
    assert (
        trained(RUN, out, [At("vit_clt.training.run:Run.train_on", 8, DIES)]).code
        == -signal.SIGKILL
    )
    assert checkpoints(out) == [3, 6]
    return out


def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def resumed(options: Sequence[str], out: Path, at: Sequence[At] = ()) -> Ended:
    return trained([*RUN, "--resume", *options], out, at)


def checkpoints(out: Path) -> list[int]:
    return sorted(int(f.name.removeprefix("step-")) for f in (out / "checkpoints").glob("step-*"))


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def starts(out: Path) -> list[int]:
    return [r["step"] for r in records(out) if r.get("event") == "start"]


def results(out: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Records by kind and step, which must say the same however often they were written."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for record in records(out):
        if record.get("event") != "start":
            kept = {name: v for name, v in record.items() if name not in TIMES}
            before = found.setdefault((record.get("event", "step"), record["step"]), kept)
            assert before == kept
    return found


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes())
        for f in folder.rglob("*")
        if f.is_file()
    }


def assert_same_end(out: Path, reference: Path) -> None:
    """The same weights, last checkpoint and curves, to the bit."""
    last = f"checkpoints/step-{STEPS:08d}"
    tensors = [f"{last}/{name}.safetensors" for name in ("model", "optimizer", "run")]
    for name in ("model.safetensors", "config.json", *tensors):
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    assert results(out) == results(reference)
    assert len(results(out)) >= STEPS
    assert {f.name for f in out.iterdir()} == {f.name for f in reference.iterdir()}
    assert checkpoints(out) == checkpoints(reference)


def assert_refused(ended: Ended, *parts: str) -> None:
    """Exit status 2 and a sentence of these parts in their order, perhaps after a progress bar."""
    assert ended.code == 2, ended.err
    pattern = ".*".join(map(re.escape, parts))
    assert re.search(rf"{pattern}(?:.*\.)?$", ended.err, re.MULTILINE), ended.err
    assert "Traceback" not in ended.err


# ---- killed -------------------------------------------------------------------------------------

# what kills each start of the run, and the step it starts at
DEATHS = (
    ("before the first checkpoint", 0, At("vit_clt.training.run:Run.train_on", 2, DIES)),
    (
        "in the middle of a file of the second",
        0,
        At("vit_clt.training.run:Run.save", 2, partial(limit_file_size, 300_000, kill=True)),
    ),
    ("before the third is renamed", 3, At("vit_clt.outputs.staging:sync", 11, DIES)),
    (
        "before old ones are removed",
        6,
        At("vit_clt.training.checkpoints:Checkpoints.steps", 3, DIES),
    ),
    (
        "after the last step",
        12,
        At("vit_clt.transcoder.model:CrossLayerTranscoder.save_pretrained", 1, DIES),
    ),
    ("before the last file", STEPS, At("vit_clt.outputs:OutputFolder.write", 3, DIES)),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "deaths"),
    [
        (EVERYTHING, DEATHS),
        (["--sparsifier", "abs_topk", "--lr-schedule", "cosine"], DEATHS[:2]),
        (["--sparsifier", "jumprelu", "--l0", "6", "--sparsity", "0.1"], DEATHS[:3]),
        (["--sparsifier", "batch_topk", "--k-start", "6"], DEATHS[:3]),
    ],
    ids=["relu_topk, everything", "abs_topk", "jumprelu", "batch_topk"],
)
def test_killed_at_every_turn_a_run_ends_with_the_same_bytes(
    options: list[str],
    deaths: Sequence[tuple[str, int, At]],
    uninterrupted: Uninterrupted,
    parquet: Path,
    tmp_path: Path,
):
    options = [option.format(parquet=parquet) for option in options]
    out = tmp_path / "run"
    for when, step, at in deaths:
        found = resumed(options, out, [at])
        assert found.code in (-signal.SIGKILL, -signal.SIGXFSZ), f"{when}: {found.err}"
        assert starts(out)[-1] == step, when
        assert not (out / "manifest.json").exists()
    assert resumed(options, out).code == 0
    assert starts(out)[-1] >= 3
    assert_same_end(out, uninterrupted(*options))
    steps = [r for r in records(out) if "event" not in r]
    if "jumprelu" in options:
        assert len({r["sparsity"] for r in steps}) == STEPS
    if "--aux-k" in options:  # every state was in use
        assert steps[0]["l0"] == 12
        assert steps[-1]["l0"] == 4
        assert max(r["aux"] for r in steps) > 0
        assert any(0 < r["dead"] < 1 for r in steps)
        assert min(r["grad_norm"] for r in steps) < 500 < max(r["grad_norm"] for r in steps)
        assert steps[-1]["skipped"] == len(UNREADABLE_ROWS)
        assert ("validation", STEPS) in results(out)


@pytest.mark.slow
def test_killed_at_random_a_run_with_a_cache_ends_with_the_same_bytes(
    cached: Path, uninterrupted: Uninterrupted, tmp_path: Path
):
    options = [*RUN, "--resume", "--cache", str(tmp_path / "cache")]
    out = tmp_path / "run"
    drawn = random.Random(0)
    for _ in range(4):
        with Started(options, out) as started:
            started.kill_after(drawn.uniform(0.3, 2.0))
            code = started.ended().code
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
    assert trained(options, out).code == 0, f"started at {starts(out)}"
    assert_same_end(out, cached)
    weights = (out / "model.safetensors").read_bytes()
    assert weights != (uninterrupted() / "model.safetensors").read_bytes(), "cached is rounded"


def test_a_first_file_that_was_cut_short_is_no_obstacle(
    uninterrupted: Uninterrupted, tmp_path: Path
):
    out = tmp_path / "new" / "run"
    out.parent.mkdir()
    assert resumed([], out, [At("vit_clt.outputs.staging:os.replace", 1, DIES)]).code < 0
    assert [f.name for f in out.iterdir()] == [".run.json.part"]
    assert resumed([], out).code == 0
    assert starts(out) == [0]
    assert_same_end(out, uninterrupted())


def test_a_finished_run_is_left_as_it_is(uninterrupted: Uninterrupted):
    out = uninterrupted()
    before = files(out)
    found = resumed([], out)
    assert found.code == 0
    assert "finished" in found.out
    assert files(out) == before


@pytest.mark.parametrize(("signal", "code"), [(IS_ASKED_TO_STOP, 1), (IS_INTERRUPTED, 130)])
def test_a_signal_saves_the_step_it_stopped_at(
    signal: Callable[[], None], code: int, uninterrupted: Uninterrupted, tmp_path: Path
):
    out = tmp_path / "run"
    found = trained(RUN, out, [At("vit_clt.training.run:Run.train_on", 5, signal)])
    assert found.code == code
    assert "Traceback" not in found.err
    # the run can be resumed or started anew, and neither is chosen silently
    assert_refused(trained(RUN, out), "--resume goes on with it, and --overwrite starts anew.")
    assert found.sentence == f"stopped after step 5 of {STEPS}; --resume goes on from there"
    assert checkpoints(out) == [3, 5]
    assert resumed([], out).code == 0
    assert starts(out) == [0, 5]
    assert_same_end(out, uninterrupted())


# ---- other options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--lr 1e-4", ["--lr is 0.0001; ", " 0.003, "]),
        ("--k 5", ["--k is 5; ", " 4, "]),
        ("--sparsifier abs_topk", ["--sparsifier is 'abs_topk'; ", " 'relu_topk', "]),
        ("--seed 1", ["--seed is 1; ", " 0, "]),
        ("--n-features 65", ["--n-features is 65; ", " 64, "]),
        ("--limit 190", ["--limit is 190; ", " 200, "]),
    ],
)
def test_another_option_is_refused_and_nothing_changes(
    option: str, sentence: list[str], killed: Path, tmp_path: Path
):
    out = copied(killed, tmp_path)
    before = files(out)
    assert_refused(resumed(option.split(), out), *sentence)
    assert files(out) == before


def test_a_cache_is_not_taken_up_on_the_way(killed: Path, tmp_path: Path):
    out = copied(killed, tmp_path)
    before = files(out)
    # it rounds what is trained on: the end would be that of neither run
    assert_refused(resumed(["--cache", str(tmp_path / "cache")], out), "--cache is ")
    assert files(out) == before


def test_other_pixels_under_the_same_name_are_refused(tmp_path: Path):
    options = ["--unreadable", "skip", "--data", f"parquet:{tmp_path / 'train.parquet'}"]
    out = tmp_path / "run"
    digits_parquet(tmp_path / "train.parquet")
    assert (
        trained([*RUN, *options], out, [At("vit_clt.training.run:Run.train_on", 5, DIES)]).code < 0
    )
    before = files(out)
    digits_parquet(tmp_path / "train.parquet", invert=True)
    assert_refused(resumed(options, out), "data is ", "(parquet:", "200 images", "; expected ")
    assert files(out) == before


def test_how_often_it_logs_and_saves_may_change(
    killed: Path, uninterrupted: Uninterrupted, tmp_path: Path
):
    out = copied(killed, tmp_path)
    free = ("--log-every", "5", "--checkpoint-every", "7", "--workers", "1")
    assert resumed([*free, "--keep-checkpoints", "3"], out).code == 0
    assert checkpoints(out) == [14, 21, STEPS]
    expected, found = results(uninterrupted()), results(out)
    assert [step for kind, step in found if kind == "step"] == [*range(1, 8), 10, 15, 20, STEPS]
    assert found.items() <= expected.items()
    weights = (out / "model.safetensors").read_bytes()
    assert weights == (uninterrupted() / "model.safetensors").read_bytes()


def test_the_options_in_run_json_make_the_run_again(
    uninterrupted: Uninterrupted, parquet: Path, tmp_path: Path
):
    first = uninterrupted(*(option.format(parquet=parquet) for option in EVERYTHING))
    found = trained(["--config", str(first / "run.json")], tmp_path / "run")
    assert found.code == 0, found.err
    assert_same_end(tmp_path / "run", first)


# ---- damage -------------------------------------------------------------------------------------


def cut_short(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damaged", "step", "back"),
    [({6: cut_short}, 3, "step 3"), ({3: cut_short, 6: flip_a_bit}, 0, "the beginning")],
    ids=["the newest", "all"],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    damaged: dict[int, Callable[[Path], None]],
    step: int,
    back: str,
    killed: Path,
    uninterrupted: Uninterrupted,
    tmp_path: Path,
):
    out = copied(killed, tmp_path)
    for number, damage in damaged.items():
        damage(out / f"checkpoints/step-{number:08d}")
    found = resumed([], out)
    assert found.code == 0
    for number in damaged:
        assert f"warning: the checkpoint at step {number} is damaged" in found.err
    assert f"going on from {back}." in found.err
    assert starts(out) == [0, step]
    assert_same_end(out, uninterrupted())


def test_a_full_disk_costs_no_earlier_checkpoint(
    killed: Path, uninterrupted: Uninterrupted, tmp_path: Path
):
    out = copied(killed, tmp_path)
    before = files(out / "checkpoints")
    full = At("vit_clt.training.run:Run.save", 1, partial(limit_file_size, 1_000_000))
    found = resumed([], out, [full])
    assert_refused(found, "the checkpoint at step 9 cannot be written", "step 6 is untouched.")
    assert files(out / "checkpoints") == before
    assert resumed([], out).code == 0
    assert starts(out) == [0, 6, 6]
    assert_same_end(out, uninterrupted())


def test_a_loss_that_explodes_names_its_place_and_leaves_the_last_good_checkpoint(tmp_path: Path):
    out = tmp_path / "run"
    found = trained([*RUN, "--lr", "1e30", "--checkpoint-every", "1"], out)
    assert_refused(found, "loss of layer ", " at step 1 (batch 1 of epoch 0)", "lower lr (1e+30)")
    assert checkpoints(out) == [1]
    weights = load_file(out / "checkpoints/step-00000001/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (out / "model.safetensors").exists()
    assert found.sentence.startswith("loss of layer "), "a line of its own, and the last"


# ---- cache --------------------------------------------------------------------------------------


def test_a_cache_that_is_lost_is_built_again(cached: Path, tmp_path: Path):
    out, cache = tmp_path / "run", tmp_path / "cache"
    shard = cache / "shard-00000.safetensors"
    lost = At("vit_clt.training.run:Run.train_on", 5, partial(Path.unlink, shard))
    found = trained([*RUN, "--cache", str(cache)], out, [lost])
    assert_refused(found, str(shard), "was deleted or damaged while in use")
    # the last whole step is kept
    stopped = checkpoints(out)[-1]
    assert 5 <= stopped <= STEPS // 2
    assert not shard.exists()
    assert resumed(["--cache", str(cache)], out).code == 0
    assert starts(out) == [0, stopped]
    before = Path(json.loads((cached / "run.json").read_text())["options"]["cache"])
    expected = load_file(before / shard.name)
    assert all(tensor.equal(expected[name]) for name, tensor in load_file(shard).items())
    assert_same_end(out, cached)


def test_the_cache_of_another_model_is_refused(tmp_path: Path):
    teacher = tmp_path / "teacher"
    shutil.copytree(Path(vit_clt.__file__).parent / "teachers/digits", teacher)
    path = next(teacher.glob("*.safetensors"))
    weights = load_file(path)
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, path)
    other = [*RUN, "--model", f"local-dir:{teacher}", "--data", "digits"]
    cache = ["--cache", str(tmp_path / "cache")]
    assert trained([*other, *cache, "--epochs", "1"], tmp_path / "other").code == 0
    before = files(tmp_path / "cache")
    found = trained([*RUN, *cache], tmp_path / "run")
    assert_refused(found, "weights_sha256 is ", f"as in activation store {tmp_path / 'cache'}, ")
    assert files(tmp_path / "cache") == before
