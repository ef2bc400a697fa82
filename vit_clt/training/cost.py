"""What a run will need of memory and disk, said before its first step.

Memory counts what lives at once in one process, in three layers: parameters' arrays and the
shuffle buffer, always; what a step keeps to its end (its batch, its codes); and the larger of what
only the backward pass and only the teacher's pass need, for these two take turns.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import psutil
import torch

from vit_clt.errors import InputError
from vit_clt.hooks.activations import IMAGES_PER_PASS
from vit_clt.kernels.choose import choose
from vit_clt.kernels.chunks import CHUNK_BYTES
from vit_clt.training.cache import cache_bytes
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.train_config import TrainConfig

_FLOAT = 4
# an entry of sparse codes: a value and a 64-bit index, as encoded and again stacked over layers
_ENTRY = 2 * (4 + 8)
# 8-bit AdamW keeps one float32 scale for 256 values of each moment
_MOMENTS = {"adamw": 2 * 4, "adamw8bit": 2 * (1 + 4 / 256)}


@dataclass(frozen=True)
class Estimate:
    """What a run will need, in bytes."""

    memory: dict[str, int]
    """Per process: "weights", "gradients", "optimiser", "shuffle buffer", "step" (batch, codes and
    temporaries), "teacher" (its weights) and "teacher pass" (what it needs beyond a step's)."""
    disk: dict[str, int]
    """ "checkpoints" (those kept and the one being written), "result", "activation cache"."""

    def lines(self) -> list[str]:
        """Memory and disk in one line each."""
        return [
            f"memory: about {_size(sum(self.memory.values()))} a process ({_parts(self.memory)})",
            f"disk: up to {_size(sum(self.disk.values()))} ({_parts(self.disk)})",
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
    """Memory and disk of a training run, by formula.

    Args:
        config: shape and sparsifier of the CLT.
        settings: how it is trained.
        n_images, n_tokens: images of the data set, and token rows of each.
        teacher_parameters: number of the ViT's parameters, kept in float32.
        processes: that share a batch; each holds the whole CLT (as DDP does).
        cache: whether activations are read from a cache on disk.
        device: where the step runs; decides what `backend="auto"` means.
    """
    weights = _FLOAT * config.n_parameters()
    moments = round(config.n_parameters() * _MOMENTS[settings.optimiser])
    kept, passing = _step(config, settings, processes, torch.device(device))
    group = _rows_bytes(config, min(n_images, IMAGES_PER_PASS) * n_tokens)
    # recorded, stacked, and the group before; a cache's is read and widened. A block adds its MLP's
    # hidden rows before and after the activation, and a few rows of width d
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
        "activation cache": cache_bytes(n_images, config.n_layers, n_tokens, config.d_model)
        if cache
        else 0,
    }
    return Estimate(memory, disk)


def check_fits(found: Estimate, *, out: Path, device: torch.device) -> None:
    """Refuse a run that cannot fit. Call it with the teacher in memory, and nothing else yet.

    Processes on this machine are counted by LOCAL_WORLD_SIZE, which launchers set.

    Raises:
        InputError: memory on `device`, or disk space where `out` lies, is less than needed.
    """
    memory = {part: size for part, size in found.memory.items() if part != "teacher"}
    needed, sharing = sum(memory.values()), 1
    if device.type == "cuda":
        where, available = str(device), torch.cuda.mem_get_info(device)[0]
    else:
        where, available = "this machine", _available_memory()
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if needed * sharing > available:
        eight_bit = memory["optimiser"] >= 2 * memory["weights"]
        raise InputError(
            f"memory needed is about {_size(needed)}{f' times {sharing}' if sharing > 1 else ''} "
            f"({_parts(memory)}), {where} has {_size(available)} free; expected less: lower "
            f"batch_size, buffer_batches or n_features"
            f"{', or take optimiser adamw8bit' if eight_bit else ''}."
        )
    needed = sum(found.disk.values())
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    available = shutil.disk_usage(folder).free
    if needed > available:
        raise InputError(
            f"disk space needed is up to {_size(needed)} ({_parts(found.disk)}), {folder} has "
            f"{_size(available)} free; expected less: lower keep_checkpoints or n_features"
            f"{', or train without a cache' if found.disk['activation cache'] else ''}."
        )


def _step(
    config: CLTConfig, settings: TrainConfig, processes: int, device: torch.device
) -> tuple[int, int]:
    """Bytes a step keeps to its end, and those that only its backward pass needs."""
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
    # JumpReLU's density is not known before it is measured; at the start it is near 1
    k = sparsifier.stored(options, n_features)
    like = torch.empty(0, device="cpu" if device.type == "cpu" else "meta")
    path = choose(settings.backend, n_features, d, k / n_features, like)
    # gradients are added to what is there: an earlier part's, or DDP's buckets
    again = settings.accumulate > 1 or processes > 1

    # the batch as it came; x and y normalised, y^; when features last fired
    kept = _rows_bytes(config, batch) + in_out + in_out // 2 + 8 * n_layers * n_features
    # the error and its gradient
    passing = in_out
    if path == "sparse":
        kept += n_layers * rows * k * _ENTRY
        # values' gradients; rows and values of one source for all its targets; its sorting
        passing += n_layers * rows * k * (4 + 12) + 40 * rows * k + 2 * CHUNK_BYTES
        # the penalty's factors and its gradient
        passing += n_layers * rows * k * 16 if sparsifier.penalised else 0
        # the decoders' come all at once
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
        # a source's gradient by target, and joined; else these lie where the encoders' will
        passing += 2 * first_decoder if again else 0
        # encoders rounded
        passing += encoders // 2 if bf16 else 0
    if options.auxiliary_weight is not None:
        # taking half of all features as dead: their codes, and copies of their weights (an encoder
        # and the own layer's decoder) with gradients
        passing += n_layers * one_layer // 2 + encoders + encoders
    return kept, passing


def _buffer(
    config: CLTConfig, settings: TrainConfig, n_images: int, n_tokens: int, processes: int
) -> int:
    shards = settings.shards or processes
    batch = ceil(settings.batch_size / shards)
    # a filling ends with a whole group of images, and starts with less than a batch left over
    rows = (settings.buffer_batches + 1) * batch + IMAGES_PER_PASS * n_tokens
    rows = min(rows, ceil(n_images / shards) * n_tokens)
    return ceil(shards / processes) * _rows_bytes(config, rows)


def _rows_bytes(config: CLTConfig, rows: int) -> int:
    """x and y of these token rows, all layers, float32."""
    return 2 * _FLOAT * config.n_layers * rows * config.d_model


def _available_memory() -> int:
    """Bytes this process may still take, a container's limit respected."""
    return min(psutil.virtual_memory().available, *_cgroup_room(Path("/")))


def _cgroup_room(root: Path) -> list[int]:
    """Bytes left under the memory limits on this process; `root` is where /proc and /sys lie."""
    room = [2**62]
    try:
        listed = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return room
    for line in listed:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used, idle = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used, idle = (
                "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        top = root / "sys/fs/cgroup" / base
        # every group above limits too; in a container the path may be the host's, the limit on top
        own = Path(path.lstrip("/"))
        for folder in (top / own, *(top / above for above in own.parents)):
            try:
                most = (folder / limit).read_text().strip()
                now = int((folder / used).read_text())
                stat = dict(
                    each.split() for each in (folder / "memory.stat").read_text().splitlines()
                )
            except OSError:
                continue
            if most != "max":
                # pages of files that nobody uses are given back when memory runs short
                room.append(max(0, int(most) - now + int(stat.get(idle, 0))))
    return room


def _parts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in sizes.items() if size)


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, as fits."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.0f} s"


def _size(n_bytes: int) -> str:
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{max(n_bytes, 1e5) / 1e6:.1f} MB" if n_bytes < 1e7 else f"{n_bytes / 1e6:.0f} MB"
