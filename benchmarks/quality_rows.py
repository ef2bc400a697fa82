"""The rows of the quality race on disk: the batches our trainer sees, in its order, and others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vit_clt import TrainConfig
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.training.batches import Stopwatch, StoreReader, epoch_batches
from vit_clt.training.order import ShardPlan
from vit_clt.training.store import ActivationStore
from vit_clt.transcoder.train_config import PRESETS


def settings_of(preset: str, epochs: int, seed: int, images: int, n_tokens: int) -> TrainConfig:
    """The settings of our trainer: a preset's, without balance, other epochs, four checkpoints.

    Raises:
        ValueError: the last batch of an epoch would be smaller than the others.
    """
    settings = replace(
        PRESETS[preset],
        epochs=epochs,
        seed=seed,
        cls_balance=False,  # the published race is older than it
        val_images=0,
        keep_checkpoints=100,
        shards=1,
    )
    if images * n_tokens % settings.batch_size:
        raise ValueError(
            f"--images: found {images}, expected a number whose {n_tokens} rows an image make "
            f"whole batches of {settings.batch_size}"
        )
    every = -(-settings.n_steps(images, n_tokens) // 4)
    return replace(settings, checkpoint_every=every)


def write_batches(
    path: Path, vit: HookedViT, store: ActivationStore, n_images: int, settings: TrainConfig
) -> None:
    """Write x and y of every step of `train` with these settings, "step layer row d_model"."""
    reader = StoreReader(store, torch.device("cpu"), Stopwatch())
    n_steps, rows = settings.n_steps(n_images, vit.cfg.n_tokens), settings.batch_size
    shape = (n_steps, vit.cfg.n_layers, rows, vit.cfg.d_model)
    x, y = (torch.empty(shape, dtype=torch.bfloat16) for _ in range(2))
    step = 0
    for epoch in range(settings.n_epochs(n_images, vit.cfg.n_tokens)):
        plan = ShardPlan(
            settings.seed,
            epoch,
            0,
            1,
            range(n_images),
            vit.cfg.n_tokens,
            rows,
            settings.buffer_batches * rows,
        )
        for batch in epoch_batches([plan], reader, rows=vit.cfg.rows):
            # the store holds bfloat16, so that nothing is rounded here
            x[step], y[step] = batch.x, batch.y
            step += 1
    assert step == n_steps
    save_file({"x": x, "y": y}, path)


def write_held_out(path: Path, vit: HookedViT, data: ImageData) -> None:
    """Write x and y of images, "layer row d_model" in float32, image by image."""
    parts = [capture(vit, images) for images, _ in data]
    x, y = (
        torch.cat([getattr(part, name) for part in parts], 1).flatten(1, 2).contiguous()
        for name in ("x", "y")
    )
    save_file({"x": x, "y": y}, path)


def groups_of(vit: HookedViT, n_images: int) -> Tensor:
    """The group of every held-out row, a number of `ROW_GROUPS`."""
    return vit.cfg.rows.groups.repeat(n_images)
