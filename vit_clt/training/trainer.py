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
from vit_clt.errors import InputError, Stopped
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.kernels.choose import choose
from vit_clt.training.batches import Cached, Recomputed, Source, Waits, lost_worker
from vit_clt.training.cache import ActivationCache
from vit_clt.training.checkpoints import Snapshot, Snapshots
from vit_clt.training.engine import Engine, check_engine
from vit_clt.training.run import Log, Run
from vit_clt.training.trial import decided
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.train_config import PRESETS, TrainConfig

__all__ = ["PRESETS", "Stopped", "TrainConfig", "as_context", "resolved", "train"]

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
        settings = resolved(settings, config, device, engine.n_processes)
        found = _found(snapshots, progress and engine.is_main) if resume else None
        if snapshots is not None and not resume and engine.is_main and snapshots.steps():
            raise InputError(
                f"checkpoints is {checkpoints}, which holds those of another run; expected a new "
                "folder, or to resume it."
            )
        if found is not None:
            if train_config is None or train_config.backend == "auto":
                settings = replace(settings, backend=found.state["train"]["backend"])
            if train_config is None or train_config.shards is None:
                settings = replace(settings, shards=found.state["train"]["shards"])
            settings = resolved(settings, config, device, engine.n_processes)
            _check_same(settings, config, vit, data, cache is not None, found)
        settings = decided(settings, config, device, engine.n_processes)
        settings = replace(settings, backend=engine.agreed(settings.backend))
        waits = Waits()
        source = _source(vit, data, settings, cache, engine, waits, progress)
        run = Run(vit, source, len(data), config, settings, engine, waits)
        run.snapshots = snapshots
        run.facts = {"data": data_fingerprint(data), "cached": cache is not None}
        if found is not None:
            run.load(found)
        run.on_log = on_log if engine.is_main else None
        try:
            return run.to_the_end(should_stop or (lambda: False), progress and engine.is_main)
        except RuntimeError as error:
            raise lost_worker(error) or error from None


def resolved(
    settings: TrainConfig, config: CLTConfig, device: torch.device | str, n_processes: int = 1
) -> TrainConfig:
    """`settings` with every "auto" and None decided that this machine decides without a trial.

    Raises:
        InputError: shards do not divide among the processes, or the batch among the shards; a
            batch in parts whose sparsifier needs it whole; or another sparsifier's options.
    """
    device = torch.device(device)
    settings = config.sparsifier.with_options(settings)
    for name, parts in (("accumulate", settings.accumulate), ("processes", n_processes)):
        if parts > 1 and config.sparsifier.whole_batch:
            raise InputError(
                f"{name} is {parts}; expected 1, as {config.sparsifier.name} chooses codes among "
                "all rows of a batch at once."
            )
    shards = settings.shards or n_processes
    if shards % n_processes:
        raise InputError(f"shards is {shards}; expected a multiple of {n_processes} processes.")
    if settings.batch_size % shards:
        raise InputError(
            f"batch_size is {settings.batch_size}; expected a multiple of shards, {shards}."
        )
    workers = settings.workers
    if workers is None:
        workers = 0 if device.type == "cpu" else min(8, max(1, torch.get_num_threads() - 1))
    backend = settings.backend
    # on a GPU top-k codes wait for a trial (`vit_clt.training.trial.decided`)
    density = config.sparsifier.density(config.n_features)
    if density is not None and device.type != "cuda":
        weight = torch.empty(0, device=device)
        backend = choose(backend, config.n_features, config.d_model, density, weight)
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
        raise InputError("resume is set without checkpoints; expected a folder of them.")
    found, torn = snapshots.newest()
    for reason in torn:
        back = f"step {found.step}" if found is not None else "the beginning"
        if show:
            warnings.warn(f"{reason}; going on from {back}.", RuntimeWarning, stacklevel=3)
    return found


def _check_same(
    settings: TrainConfig,
    config: CLTConfig,
    vit: HookedViT,
    data: ImageData,
    cached: bool,
    found: Snapshot,
) -> None:
    """Refuse to resume a run of other settings, another CLT, teacher or data."""
    # as this version writes it
    was = CLTConfig.from_json(found.state["clt"]).to_json()
    teacher = was.pop("teacher")
    asked = config.to_json()
    asked.pop("teacher")
    for name in sorted(was):
        if was[name] != asked.get(name):
            raise InputError(
                f"{name} is {asked.get(name)!r}; the run that is resumed has {was[name]!r}."
            )
    # a field the run did not know has its default
    before = TrainConfig.from_json(found.state["train"], config.sparsifier.training).flat()
    now = settings.flat()
    for name in sorted(now):
        if name not in FREE and before[name] != now[name]:
            raise InputError(
                f"{name} is {now[name]!r}; the run that is resumed has {before[name]!r}."
            )
    if found.state["cached"] != cached:
        raise InputError(
            f"cache is {'given' if cached else 'missing'}; the run that is resumed was started "
            f"{'with' if found.state['cached'] else 'without'} one."
        )
    identity = vit.identity()
    if teacher["weights_sha256"] != identity.weights_sha256:
        raise InputError(
            f"model is {identity.model}; the run that is resumed has {teacher['model']} with other "
            "weights."
        )
    if found.state["data"] != data_fingerprint(data):
        raise InputError(
            f"data is {data.name} with {len(data)} images; the run that is resumed saw other "
            "images or another preprocessing."
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
            f"config is for {have[0]} layers of width {have[1]}; expected {want[0]} layers of "
            f"width {want[1]}, as in model {vit.cfg.model}."
        )
    sparsifier = config.sparsifier
    sparsifier.check(sparsifier.with_options(settings).sparsity, config.n_features)
    n_images -= settings.held_out(n_images)
    if settings.shards is not None and n_images < settings.shards:
        raise InputError(
            f"shards is {settings.shards}; expected at most one for each of the {n_images} "
            "training images."
        )
