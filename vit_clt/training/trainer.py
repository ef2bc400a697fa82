"""Train a CLT on a frozen ViT: teacher-forced, on all token rows, with AdamW, in normalised space.

x and y are scaled to a mean norm of sqrt(d_model) per layer, and the scales are folded into the CLT
that is returned. The loss is in `objective`, the data in `batches`, processes and precision in
`engine`. The paper (arXiv 2604.13304) fixes AdamW, lr 2e-4, 10 epochs and all token rows; the other
choices are this package's own.

Everything random is a function of the seed and of the step, so a run that is killed and resumed
ends with the same bits as one that was not, on the same machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vit_clt.data.fingerprints import data_fingerprint, fingerprint_as
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.outputs import check_same
from vit_clt.training.batches import (
    ActivationReader,
    Stopwatch,
    StoreReader,
    ViTReader,
    lost_worker_error,
)
from vit_clt.training.checkpoints import Checkpoint, Checkpoints
from vit_clt.training.engine import Engine, check_engine
from vit_clt.training.freed_memory import freed_memory_kept
from vit_clt.training.run import Log, Run
from vit_clt.training.store import ActivationStore
from vit_clt.training.trial import decided_backend
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.train_config import TrainConfig

FREE = ("workers", "log_every", "checkpoint_every", "keep_checkpoints")
"""Settings that may differ in a resumed run, because they do not change the result."""


def train(
    vit: HookedViT,
    data: ImageData,
    config: CLTConfig,
    train_config: TrainConfig | None = None,
    *,
    checkpoints: Path | str | None = None,
    resume: bool = False,
    cache: Path | str | None = None,
    trackers: Sequence[str] = (),
    log_dir: Path | None = None,
    on_log: Log | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: bool = True,
) -> CrossLayerTranscoder:
    """Train a CLT from scratch and return it in raw units, its teacher recorded.

    Args:
        vit: the frozen teacher.
        data: training images; labels are not used.
        config: shape and sparsifier of the CLT; must fit `vit`.
        train_config: hyperparameters.
        checkpoints: folder for checkpoints (model, optimiser, counters; safetensors and JSON).
        resume: go on from the newest whole checkpoint there, or start at step 0 if there is none.
        cache: folder of an activation store (made where missing); None recomputes activations.
        trackers: "tensorboard", "wandb" or others that accelerate knows.
        log_dir: where trackers write.
        on_log: called with a dict, in the main process: {"event": "start", "step"} first; every
            `log_every` steps and after the last one step, epoch, tokens (rows of the batch), loss
            (reconstruction), loss_by_layer, fvu, fvu_cls, fvu_patch (in normalised space, means
            over layers for this batch; None where rows do not vary), l0, l0_by_layer, dead (share
            of features silent for `dead_tokens` rows), dead_by_layer, sparsity (lambda), lr,
            grad_norm, aux, backend (dense, sparse or banded), tokens_per_second, waits (shares of
            the time spent reading images, in the ViT, in steps), skipped (unreadable images); after
            each epoch {"event": "validation", "step", "epoch", "n_images", "loss",
            "fvu_by_layer", "fvu_cls_by_layer", "fvu_patch_by_layer", "l0_by_layer"} (means over
            all rows of the images held out, None where rows do not vary), if there are any; at
            the end {"event": "end", "step", "seconds", "tokens_per_second"}.
        should_stop: called after each step; True saves a checkpoint and raises `Stopped`.
        progress: show a progress line.

    Raises:
        InputError: `config` or `data` does not fit `vit`, activations, loss or gradients are not
            finite, the checkpoints are those of another run, or the disk is full.
        Stopped: `should_stop` returned True (`vit_clt.errors`).
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    device = next(vit.parameters()).device
    settings = config.sparsifier.with_options(train_config or TrainConfig())
    check_run(vit, config, settings, len(data), device, trackers)
    memory = freed_memory_kept() if device.type == "cpu" else nullcontext()
    with memory, Engine(settings, device, trackers, log_dir) as engine:
        saved = None if checkpoints is None else Checkpoints(checkpoints, settings.keep_checkpoints)
        checkpoint = _newest(saved, progress and engine.is_main) if resume else None
        if saved is not None and not resume and engine.is_main and saved.steps():
            raise InputError(
                "checkpoints",
                f"is {checkpoints}, which holds those of another run; expected a new "
                "folder, or to resume it.",
            )
        settings = _decided(settings, config, engine, checkpoint)
        epochs = settings.n_epochs(len(data), vit.cfg.n_tokens)
        settings = replace(settings, epochs=epochs)
        facts = {"data": data_fingerprint(data), "cached": cache is not None}
        if checkpoint is not None:
            _check_resumed(checkpoint, settings, config, vit, data, facts)
        stopwatch = Stopwatch()
        run = Run(
            vit,
            data,
            _reader(vit, data, settings, cache, engine, stopwatch, progress),
            config,
            settings,
            engine,
            stopwatch,
            checkpoints=saved,
            on_log=on_log if engine.is_main else None,
            facts=facts,
            checkpoint=checkpoint,
        )
        try:
            return run.to_the_end(should_stop or (lambda: False), progress and engine.is_main)
        except RuntimeError as error:
            raise lost_worker_error(error) or error from None


def _decided(
    settings: TrainConfig, config: CLTConfig, engine: Engine, checkpoint: Checkpoint | None
) -> TrainConfig:
    """The settings of the run, every "auto" and None decided, the same in every process.

    A resumed run keeps what was decided when it started.
    """
    if checkpoint is not None:
        before = checkpoint.state["train"]
        if settings.epochs is None:
            settings = replace(settings, epochs=before["epochs"])
        backend = before["backend"] if settings.backend == "auto" else settings.backend
        shards = before["shards"] if settings.shards is None else settings.shards
        settings = replace(settings, backend=backend, shards=shards)
    settings = resolved(settings, config, engine.device, engine.n_processes, trial=True)
    return replace(settings, backend=engine.agreed(settings.backend))


def resolved(
    settings: TrainConfig,
    config: CLTConfig,
    device: torch.device | str,
    n_processes: int = 1,
    *,
    trial: bool = False,
) -> TrainConfig:
    """`settings` with every "auto" and None decided.

    Args:
        settings: the settings as the user gave them.
        config: the CLT to be trained.
        device: where it is trained.
        n_processes: number of processes that share a batch.
        trial: time the back ends on a GPU (`vit_clt.training.trial.decided_backend`); otherwise
            "auto" stays "auto" there.

    Raises:
        InputError: shards do not divide among the processes, or the batch among the shards; the
            batch comes in parts but the sparsifier needs it whole; a Matryoshka prefix has all
            features; or the options are another sparsifier's.
    """
    device = torch.device(device)
    settings = config.sparsifier.with_options(settings)
    for name, parts in (("accumulate", settings.accumulate), ("processes", n_processes)):
        if parts > 1 and config.sparsifier.whole_batch:
            raise InputError(
                name,
                f"is {parts}; expected 1, as {config.sparsifier.name} chooses codes among all rows "
                "of a batch at once.",
            )
    prefixes = settings.matryoshka
    if prefixes is not None and prefixes[-1] >= config.n_features:
        raise InputError(
            "matryoshka",
            f"is {list(prefixes)}; expected numbers below n_features, {config.n_features}.",
        )
    shards = settings.shards or n_processes
    if shards % n_processes:
        raise InputError("shards", f"is {shards}; expected a multiple of {n_processes} processes.")
    if settings.batch_size % shards:
        raise InputError(
            "batch_size", f"is {settings.batch_size}; expected a multiple of shards, {shards}."
        )
    workers = settings.workers
    if workers is None:
        workers = 0 if device.type == "cpu" else min(8, max(1, torch.get_num_threads() - 1))
    backend = decided_backend(settings, config, device, n_processes, trial=trial)
    return replace(settings, shards=shards, workers=workers, backend=backend)


def as_context(config: CLTConfig, settings: TrainConfig) -> dict[str, Any]:
    """Both configurations as JSON values, for metrics files."""
    return {"clt": config.to_json(), "train": asdict(settings), "backend": settings.backend}


def _reader(
    vit: HookedViT,
    data: ImageData,
    settings: TrainConfig,
    cache: Path | str | None,
    engine: Engine,
    stopwatch: Stopwatch,
    progress: bool,
) -> ActivationReader:
    if cache is None:
        assert settings.workers is not None
        return ViTReader(vit, data, settings.workers, settings.unreadable == "skip", stopwatch)
    # the main process builds what is missing before the others read
    with engine.accelerator.main_process_first():
        store = ActivationStore(
            cache,
            vit,
            data,
            unreadable=settings.unreadable,
            progress=progress and engine.is_main,
        )
    return StoreReader(store, engine.device, stopwatch)


def _newest(saved: Checkpoints | None, show: bool) -> Checkpoint | None:
    if saved is None:
        raise InputError("resume", "is set without checkpoints; expected a folder of them.")
    checkpoint, damages = saved.newest()
    for reason in damages:
        back = f"step {checkpoint.step}" if checkpoint is not None else "the beginning"
        if show:
            warnings.warn(f"{reason}; going on from {back}.", RuntimeWarning, stacklevel=3)
    return checkpoint


def _check_resumed(
    checkpoint: Checkpoint,
    settings: TrainConfig,
    config: CLTConfig,
    vit: HookedViT,
    data: ImageData,
    facts: dict[str, Any],
) -> None:
    """Refuse to resume a run with other settings, another CLT, another teacher or other data."""
    where = "the run that is resumed"
    # read and written again: an earlier version may have written it differently
    clt = CLTConfig.from_json(checkpoint.state["clt"]).to_json()
    teacher = clt.pop("teacher")
    check_same({name: config.to_json()[name] for name in sorted(clt)}, clt, where)
    # a field that the checkpoint lacks has its default
    before = TrainConfig.from_json(checkpoint.state["train"], config.sparsifier.training).flat()
    now = settings.flat()
    check_same({name: now[name] for name in sorted(now) if name not in FREE}, before, where)
    identity = vit.identity()
    check_same(
        {
            "cache": facts["cached"],
            "model": identity.weights_sha256,
            "data": fingerprint_as(checkpoint.state["data"], data),
        },
        {
            "cache": checkpoint.state["cached"],
            "model": teacher["weights_sha256"],
            "data": checkpoint.state["data"],
        },
        where,
        {
            "cache": "whether activations are read from one",
            "model": f"the weights of {identity.model}",
            "data": f"{data.name}, {len(data)} images as stored and preprocessed",
        },
    )


def check_run(
    vit: HookedViT,
    config: CLTConfig,
    settings: TrainConfig,
    n_images: int,
    device: torch.device,
    trackers: Sequence[str] = (),
) -> None:
    """Refuse a run that `train` would refuse at its start.

    Args:
        vit: the teacher.
        config: the CLT to be trained.
        settings: how it is trained.
        n_images: number of images of the data set, those held out included.
        device: the device that the run is on.
        trackers: names of trackers.

    Raises:
        InputError: the CLT does not fit the teacher, there are fewer training images than shards,
            or as `check_engine`.
    """
    check_engine(settings, device, trackers)
    shape, expected = (config.n_layers, config.d_model), (vit.cfg.n_layers, vit.cfg.d_model)
    if shape != expected:
        raise InputError(
            "config",
            f"is for {shape[0]} layers of width {shape[1]}; expected {expected[0]} layers of "
            f"width {expected[1]}, as in model {vit.cfg.model}.",
        )
    sparsifier = config.sparsifier
    sparsifier.check(sparsifier.with_options(settings).sparsity, config.n_features)
    n_images -= settings.held_out(n_images)
    if settings.shards is not None and n_images < settings.shards:
        raise InputError(
            "shards",
            f"is {settings.shards}; expected at most one for each of the {n_images} "
            "training images.",
        )
