"""The folder of a training run: run.json says what is trained, train.jsonl how it goes.

run.json is written when the run begins, so that a folder with it can be resumed. manifest.json is
written last, by the caller, and marks the run as finished.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any, get_args

from vit_clt.choices import Backend, check_choice
from vit_clt.errors import InputError
from vit_clt.inputs import read_json, reading
from vit_clt.metrics import versions
from vit_clt.outputs import OutputFolder, check_same
from vit_clt.training.planned import PlannedRun
from vit_clt.training.processes import asked_to_stop, is_main, n_processes
from vit_clt.training.trainer import FREE, train
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.saved_files import CONFIG_FILE, WEIGHTS_FILE

RUN_FILE, LOG_FILE = "run.json", "train.jsonl"
FILES = (RUN_FILE, LOG_FILE, CONFIG_FILE, WEIGHTS_FILE)


def resumed(
    plan: PlannedRun, options: Mapping[str, Any], folder: Path, defaults: Mapping[str, Any]
) -> PlannedRun:
    """The run with the back end that the one in `folder` was started with.

    Settings that have no option are checked with the checkpoint.

    Args:
        plan: the run that is asked for.
        options: its options by name, as run.json has them.
        folder: folder of the run to go on with.
        defaults: values of options that are newer than that run.

    Raises:
        InputError: the run in the folder has other options, or its run.json cannot be read.
    """
    path = folder / RUN_FILE
    before = read_json(path)
    with reading(path, "a run to resume"):
        was, now, then = _flat(before["options"]), _flat(options), before["versions"]
    # the checkpoint settles what "auto" and None stand for
    free = (*FREE, "training", "preset", "cache", "backend", "shards")
    now = {name: value for name, value in now.items() if name not in free}
    check_same(now, {**defaults, **was}, f"the run in {folder}")
    if then != versions():
        warnings.warn(
            f"this run was started with {str(then)[:300]}; it may not end with the same bits",
            RuntimeWarning,
            stacklevel=2,
        )
    backend: Backend = was.get("backend", "auto")
    check_choice("backend", backend, get_args(Backend))
    return plan.on(backend)


def begin(folder: OutputFolder, plan: PlannedRun, options: Mapping[str, Any]) -> None:
    """Open the folder for a new run, and write run.json: what determines it, and its options."""
    run = {
        "options": options,
        "clt": plan.config.to_json() | {"teacher": asdict(plan.vit.identity())},
        "data": {"name": plan.data.name, "split": plan.data.split, "n_images": len(plan.data)},
        "processes": n_processes(),
        "versions": versions(),
    }
    folder.begin(run)


def train_in(
    folder: OutputFolder, plan: PlannedRun, trackers: Sequence[str] = ()
) -> CrossLayerTranscoder:
    """Train, with log and checkpoints in the folder, to which the main process saves the CLT.

    Raises:
        InputError: as `train`, or the log cannot be written.
        Stopped: SIGTERM or Ctrl-C has come, and a last checkpoint is written.
    """
    with (
        folder.stream(LOG_FILE) if is_main() else nullcontext() as log,
        asked_to_stop() as stop,
    ):
        clt = train(
            plan.vit,
            plan.data,
            plan.config,
            plan.requested,
            checkpoints=folder.place / "checkpoints",
            resume=folder.resumes,
            cache=plan.cache,
            trackers=trackers,
            log_dir=folder.place / "trackers" if trackers else None,
            on_log=partial(_write_record, log),
            should_stop=stop,
        )
    if is_main():
        clt.save_pretrained(folder.place)
    return clt


def _write_record(log: IO[str] | None, record: dict[str, Any]) -> None:
    assert log is not None  # only the main process is given records
    try:
        log.write(json.dumps(record) + "\n")
    except OSError as error:
        raise InputError(f"{log.name} cannot be written: {error.strerror}.") from error


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of run.json, with those of training and of its sparsifier at the same level."""
    training = dict(options["training"])
    sparsity = training.pop("sparsity")
    return {**options, **training, **sparsity}
