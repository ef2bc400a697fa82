"""Train a CLT on a frozen ViT: teacher-forced, all tokens, AdamW, in normalised space.

x and y are brought to a mean norm of sqrt(d_model) per layer; the scales are folded into the CLT
that is returned. `objective` beside this file holds the loss, `batches` the data, `engine`
processes and precision. The paper (arXiv 2604.13304) fixes AdamW, lr 2e-4, 10 epochs, all tokens;
the rest is our choice.

Everything random is a function of the seed and of the step, so a run that is killed and resumed
ends with the same bits as one that was not, on the same machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vit_clt.data.fingerprints import data_fingerprint
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.outputs import check_same
from vit_clt.training.batches import Cached, Recomputed, Source, Waits, lost_worker
from vit_clt.training.cache import ActivationCache
from vit_clt.training.checkpoints import Snapshot, Snapshots
from vit_clt.training.engine import Engine, check_engine
from vit_clt.training.run import Log, Run
from vit_clt.training.trial import decided_backend
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.train_config import TrainConfig

FREE = ("workers", "log_every", "checkpoint_every", "keep_checkpoints")
"""What a resumed run may set anew without another result."""


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
        config: shape and sparsifier; must fit `vit`.
        train_config: hyperparameters.
        checkpoints: folder for checkpoints (model, optimiser, counters; safetensors and JSON).
        resume: go on from the newest whole one there; without one, begin.
        cache: folder of an activation cache (made where missing); None recomputes activations.
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
        should_stop: asked after each step; True saves a checkpoint and raises `Stopped`.
        progress: show a progress line.

    Raises:
        InputError: `config` or `data` does not fit `vit`, activations, loss or gradients are not
            finite, the checkpoints are those of another run, or the disk is full.
        Stopped: `should_stop` said so (`vit_clt.errors`).
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    device = next(vit.parameters()).device
    settings = config.sparsifier.with_options(train_config or TrainConfig())
    check_run(vit, config, settings, len(data), device, trackers)
    with Engine(settings, device, trackers, log_dir) as engine:
        snapshots = (
            None if checkpoints is None else Snapshots(checkpoints, settings.keep_checkpoints)
        )
        found = _found(snapshots, progress and engine.is_main) if resume else None
        if snapshots is not None and not resume and engine.is_main and snapshots.steps():
            raise InputError(
                "checkpoints",
                f"is {checkpoints}, which holds those of another run; expected a new "
                "folder, or to resume it.",
            )
        settings = _settled(settings, config, engine, found)
        facts = {"data": data_fingerprint(data), "cached": cache is not None}
        if found is not None:
            _check_resumed(found, settings, config, vit, data, facts)
        waits = Waits()
        run = Run(
            vit,
            _source(vit, data, settings, cache, engine, waits, progress),
            len(data),
            config,
            settings,
            engine,
            waits,
            snapshots=snapshots,
            on_log=on_log if engine.is_main else None,
            facts=facts,
            found=found,
        )
        try:
            return run.to_the_end(should_stop or (lambda: False), progress and engine.is_main)
        except RuntimeError as error:
            raise lost_worker(error) or error from None


def _settled(
    asked: TrainConfig, config: CLTConfig, engine: Engine, found: Snapshot | None
) -> TrainConfig:
    """The settings of the run, every "auto" and None decided, the same in every process.

    What was decided when the run started is not decided again where it is resumed.
    """
    if found is not None:
        before = found.state["train"]
        backend = before["backend"] if asked.backend == "auto" else asked.backend
        shards = before["shards"] if asked.shards is None else asked.shards
        asked = replace(asked, backend=backend, shards=shards)
    settings = resolved(asked, config, engine.device, engine.n_processes, trial=True)
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
        settings: what is asked for.
        config: the CLT to be trained.
        device: where.
        n_processes: that share a batch.
        trial: also decide what takes a trial (`vit_clt.training.trial.decided_backend`); otherwise
            that back end stays "auto".

    Raises:
        InputError: shards do not divide among the processes, or the batch among the shards; a
            batch in parts whose sparsifier needs it whole; or another sparsifier's options.
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


def _source(
    vit: HookedViT,
    data: ImageData,
    settings: TrainConfig,
    cache: Path | str | None,
    engine: Engine,
    waits: Waits,
    progress: bool,
) -> Source:
    if cache is None:
        assert settings.workers is not None
        return Recomputed(vit, data, settings.workers, settings.unreadable == "skip", waits)
    # one process builds what is missing, then all read
    with engine.accelerator.main_process_first():
        found = ActivationCache(
            cache,
            vit,
            data,
            unreadable=settings.unreadable,
            progress=progress and engine.is_main,
        )
    return Cached(found, engine.device, waits)


def _found(snapshots: Snapshots | None, show: bool) -> Snapshot | None:
    if snapshots is None:
        raise InputError("resume", "is set without checkpoints; expected a folder of them.")
    found, torn = snapshots.newest()
    for reason in torn:
        back = f"step {found.step}" if found is not None else "the beginning"
        if show:
            warnings.warn(f"{reason}; going on from {back}.", RuntimeWarning, stacklevel=3)
    return found


def _check_resumed(
    found: Snapshot,
    settings: TrainConfig,
    config: CLTConfig,
    vit: HookedViT,
    data: ImageData,
    facts: dict[str, Any],
) -> None:
    """Refuse to resume a run of other settings, another CLT, teacher or data."""
    where = "the run that is resumed"
    # as this version writes it
    clt = CLTConfig.from_json(found.state["clt"]).to_json()
    teacher = clt.pop("teacher")
    check_same({name: config.to_json()[name] for name in sorted(clt)}, clt, where)
    # a field the run did not know has its default
    before = TrainConfig.from_json(found.state["train"], config.sparsifier.training).flat()
    now = settings.flat()
    check_same({name: now[name] for name in sorted(now) if name not in FREE}, before, where)
    identity = vit.identity()
    check_same(
        {"cache": facts["cached"], "model": identity.weights_sha256, "data": facts["data"]},
        {
            "cache": found.state["cached"],
            "model": teacher["weights_sha256"],
            "data": found.state["data"],
        },
        where,
        {
            "cache": "whether activations are read from one",
            "model": f"the weights of {identity.model}",
            "data": f"{data.name}, {len(data)} images as they are preprocessed",
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
    """Raise InputError, in one sentence, for a run that `train` would refuse at its start."""
    check_engine(settings, device, trackers)
    have, want = (config.n_layers, config.d_model), (vit.cfg.n_layers, vit.cfg.d_model)
    if have != want:
        raise InputError(
            "config",
            f"is for {have[0]} layers of width {have[1]}; expected {want[0]} layers of "
            f"width {want[1]}, as in model {vit.cfg.model}.",
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
