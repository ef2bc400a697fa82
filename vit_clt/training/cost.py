"""The memory and disk that a training run will need, estimated before its first step.

The memory of a process is a sum of three parts: the arrays of the parameters and the shuffle
buffer, which are always there; what a step keeps to its end (its batch, its codes); and the larger
of what the backward pass alone and the teacher's pass alone need, as the two take turns.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch

from vit_clt.errors import InputError
from vit_clt.forecast.memory import available_memory
from vit_clt.forecast.wording import byte_size
from vit_clt.hooks.activations import IMAGES_PER_PASS
from vit_clt.kernels.choose import choose
from vit_clt.kernels.chunks import CHUNK_BYTES
from vit_clt.training.store import store_bytes
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.train_config import TrainConfig

_FLOAT = 4
# an entry of sparse codes is a value and a 64-bit index, as encoded and again stacked over layers
_ENTRY = 2 * (4 + 8)
# 8-bit AdamW keeps one float32 scale for 256 values of each moment
_MOMENTS = {"adamw": 2 * 4, "adamw8bit": 2 * (1 + 4 / 256)}


@dataclass(frozen=True)
class Estimate:
    """Memory and disk that a training run will need, in bytes."""

    memory: dict[str, int]
    """Bytes of one process, by part: "weights", "gradients", "optimiser", "shuffle buffer", "step"
    (batch, codes and temporaries), "teacher" (its weights) and "teacher pass" (what its forward
    needs beyond the memory of a step)."""
    disk: dict[str, int]
    """Bytes by part: "checkpoints" (those kept and the one being written), "result" and
    "activation store"."""

    def lines(self) -> list[str]:
        """One line about memory and one about disk."""
        memory = byte_size(sum(self.memory.values()))
        return [
            f"memory: about {memory} a process ({_parts(self.memory)})",
            f"disk: up to {byte_size(sum(self.disk.values()))} ({_parts(self.disk)})",
        ]


def estimate(
    config: CLTConfig,
    settings: TrainConfig,
    *,
    n_images: int,
    n_tokens: int,
    teacher_parameters: int,
    processes: int = 1,
    cache: bool = False,
    device: torch.device | str = "cpu",
) -> Estimate:
    """Estimate memory and disk of a training run by formula.

    Args:
        config: shape and sparsifier of the CLT.
        settings: how it is trained.
        n_images, n_tokens: images of the data set, and token rows of each.
        teacher_parameters: number of the ViT's parameters, kept in float32.
        processes: number of processes that share a batch; each has the whole CLT (as with DDP).
        cache: whether activations are read from an activation store on disk.
        device: where the step runs; it decides what `backend="auto"` means.
    """
    weights = _FLOAT * config.n_parameters()
    moments = round(config.n_parameters() * _MOMENTS[settings.optimiser])
    kept, passing = _step(config, settings, processes, torch.device(device))
    group = _rows_bytes(config, min(n_images, IMAGES_PER_PASS) * n_tokens)
    # the activations as recorded and as stacked, and those of the group before; from a store they
    # are read and converted to float32. A block adds its MLP's hidden rows before and after the
    # activation function, and a few rows of width d
    hidden = 12 * group // (2 * config.n_layers)
    teacher = 2 * group if cache else 3 * group + hidden
    memory = {
        "weights": weights,
        "gradients": weights,
        "optimiser": moments,
        "shuffle buffer": _buffer(config, settings, n_images, n_tokens, processes),
        "step": kept + passing,
        "teacher": _FLOAT * teacher_parameters,
        "teacher pass": max(0, teacher - passing),
    }
    copies = settings.keep_checkpoints + 1 if settings.checkpoint_every else 0
    disk = {
        "checkpoints": copies * (weights + moments),
        "result": weights,
        "activation store": store_bytes(n_images, config.n_layers, n_tokens, config.d_model)
        if cache
        else 0,
    }
    return Estimate(memory, disk)


def check_resources(needs: Estimate, *, out: Path, device: torch.device) -> None:
    """Refuse a run that needs more memory or disk than there is.

    It must be called when the teacher is in memory already and nothing else is. The number of
    processes on this machine is LOCAL_WORLD_SIZE, which launchers set.

    Raises:
        InputError: memory on `device`, or disk space where `out` lies, is less than needed.
    """
    memory = {part: size for part, size in needs.memory.items() if part != "teacher"}
    needed, sharing = sum(memory.values()), 1
    if device.type == "cuda":
        where, available = str(device), torch.cuda.mem_get_info(device)[0]
    else:
        where, available = "this machine", available_memory()
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if needed * sharing > available:
        eight_bit = memory["optimiser"] >= 2 * memory["weights"]
        raise InputError(
            f"memory needed is about {byte_size(needed)}"
            f"{f' times {sharing}' if sharing > 1 else ''} ({_parts(memory)}), {where} has "
            f"{byte_size(available)} free; expected less: lower "
            f"batch_size, buffer_batches or n_features"
            f"{', or take optimiser adamw8bit' if eight_bit else ''}."
        )
    needed = sum(needs.disk.values())
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    available = shutil.disk_usage(folder).free
    if needed > available:
        raise InputError(
            f"disk space needed is up to {byte_size(needed)} ({_parts(needs.disk)}), {folder} has "
            f"{byte_size(available)} free; expected less: lower keep_checkpoints or n_features"
            f"{', or train without an activation store' if needs.disk['activation store'] else ''}."
        )


def _step(
    config: CLTConfig, settings: TrainConfig, processes: int, device: torch.device
) -> tuple[int, int]:
    """Bytes that a step keeps to its end, and bytes that only its backward pass needs."""
    n_layers, d, n_features = config.n_layers, config.d_model, config.n_features
    batch = ceil(settings.batch_size / processes)
    rows = ceil(batch / settings.accumulate)
    in_out = _rows_bytes(config, rows)
    one_layer = _FLOAT * rows * n_features
    block = _FLOAT * n_features * d
    encoders, decoders = n_layers * block, config.n_decoders() * block
    first_decoder = len(config.targets(0)) * block
    sparsifier, bf16 = config.sparsifier, settings.precision == "bf16"
    options = sparsifier.with_options(settings).sparsity
    # the density of JumpReLU is known only once it is measured; at the start it is near 1
    k = sparsifier.stored(options, n_features)
    like = torch.empty(0, device="cpu" if device.type == "cpu" else "meta")
    path = choose(settings.backend, n_features, d, k / n_features, like)
    prefixes = len(settings.matryoshka or ())
    # gradients are added to those of an earlier part of the batch, of another prefix, or to the
    # buckets of DDP
    again = settings.accumulate > 1 or processes > 1 or prefixes > 0

    # the batch as read; x and y normalised, and y^; the rows since each feature fired
    kept = _rows_bytes(config, batch) + in_out + in_out // 2 + 8 * n_layers * n_features
    if prefixes:
        # the error of each, and the entries parted among them, or all codes written out for each
        written_out = path == "dense" and sparsifier.dense_layout
        kept += prefixes * in_out // 2
        kept += (prefixes + 1) * n_layers * one_layer if written_out else n_layers * rows * k * 12
    # the error and its gradient
    passing = in_out
    if path == "sparse":
        kept += n_layers * rows * k * _ENTRY
        # the gradients of the values; rows and values of one source for all its targets, sorted
        passing += n_layers * rows * k * (4 + 12) + 40 * rows * k + 2 * CHUNK_BYTES
        # the penalty's factors and its gradient
        passing += n_layers * rows * k * 16 if sparsifier.penalised else 0
        # the gradients of all decoders come at once
        passing += decoders if again else 0
    elif sparsifier.dense_layout:
        kept += n_layers * one_layer
        # pre-activations, the codes' gradient and one more term of it, the penalty's slope
        passing += 4 * n_layers * one_layer
        if bf16:
            # codes, pre-activations and their gradient are half as large
            kept -= n_layers * one_layer // 2
            passing -= n_layers * one_layer
    else:
        kept += n_layers * rows * k * _ENTRY
        # codes written out for one source, and their gradient
        passing += n_layers * rows * k * 4 + 3 * one_layer
    if path == "dense":
        # the gradient of a source's decoders by target, and joined; without parts of a batch these
        # take the memory that the gradient of the encoders takes later
        passing += 2 * first_decoder if again else 0
        # the encoders in bf16
        passing += encoders // 2 if bf16 else 0
    if options.auxiliary_weight is not None:
        # if half of all features are dead: their codes, and copies of their weights (encoder and
        # decoder of the layer itself) with gradients
        passing += n_layers * one_layer // 2 + encoders + encoders
    return kept, passing


def _buffer(
    config: CLTConfig, settings: TrainConfig, n_images: int, n_tokens: int, processes: int
) -> int:
    shards = settings.shards or processes
    batch = ceil(settings.batch_size / shards)
    # a buffer load ends with a whole group of images, and starts with less than a batch left over
    rows = (settings.buffer_batches + 1) * batch + IMAGES_PER_PASS * n_tokens
    rows = min(rows, ceil(n_images / shards) * n_tokens)
    return ceil(shards / processes) * _rows_bytes(config, rows)


def _rows_bytes(config: CLTConfig, rows: int) -> int:
    """Bytes of x and y of this many token rows in all layers, in float32."""
    return 2 * _FLOAT * config.n_layers * rows * config.d_model


def _parts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {byte_size(size)}" for name, size in sizes.items() if size)
