"""Shuffled token batches from images, for one process of perhaps several.

An `ActivationReader` gives the activations of groups of images: a `ViTReader` runs the ViT, a
`StoreReader` reads an activation store. `epoch_batches` shuffles their token rows through a buffer.
The buffer is not part of a checkpoint: a run that resumes reads the groups of images that have rows
in it again, in the same groups, so that the same kernels give the same bits.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks.activations import IMAGES_PER_PASS, Activations, capture
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.rows import TokenRows
from vit_clt.training.order import BufferLoad, ShardPlan
from vit_clt.training.store import ActivationStore

# seconds to wait for the signal of a lost worker, whose exception ends the wait
_SIGNAL_SECONDS = 2.0
# other ways to start a process would have to pickle the data set
_START_METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else None


@dataclass(frozen=True)
class TokenBatch:
    """Token rows of many images, shuffled together."""

    x: Float[Tensor, "layer token d_model"]
    y: Float[Tensor, "layer token d_model"]
    group: Int[Tensor, " token"]
    """The group of every row, a number of `ROW_GROUPS`: 0 CLS, 1 patches, 2 registers."""

    def __len__(self) -> int:
        return len(self.group)


@dataclass(frozen=True)
class GroupActivations:
    """Activations of a group of images; those of unreadable images are zero."""

    x: Float[Tensor, "layer image token d_model"]
    y: Float[Tensor, "layer image token d_model"]
    readable: Bool[Tensor, " image"]


@dataclass
class Stopwatch:
    """Seconds spent on reading images and in the ViT since `shares` was last called."""

    seconds: dict[str, float] = field(default_factory=lambda: {"images": 0.0, "vit": 0.0})
    since: float = field(default_factory=time.perf_counter)

    def add(self, part: str, started: float) -> None:
        """Add the time since `started` to "images" or "vit"."""
        self.seconds[part] += time.perf_counter() - started

    def shares(self) -> dict[str, float]:
        """Shares of the time since the last call; "step" is the remainder. All start again at 0."""
        now = time.perf_counter()
        total = max(now - self.since, 1e-9)
        shares = {part: min(1.0, seconds / total) for part, seconds in self.seconds.items()}
        self.seconds, self.since = dict.fromkeys(self.seconds, 0.0), now
        return {**shares, "step": max(0.0, 1 - sum(shares.values()))}


@runtime_checkable
class ActivationReader(Protocol):
    """Reads the activations of groups of images."""

    skipped: set[int]
    """Images, by row of the data set, that could not be read so far."""

    def read(self, groups: Sequence[Sequence[int]]) -> Iterator[GroupActivations]:
        """The activations of each group, a sequence of rows of the data set, in order."""
        ...


class ViTReader:
    """Reads activations by running the ViT.

    Args:
        vit, data: the teacher and its images.
        workers: processes that decode images ahead; 0 decodes in this one.
        skip: leave out unreadable images instead of stopping at them.
        stopwatch: counts the time spent.
    """

    def __init__(
        self, vit: HookedViT, data: ImageData, workers: int, skip: bool, stopwatch: Stopwatch
    ):
        self.vit, self.data, self.workers, self.skip = vit, data, workers, skip
        self.stopwatch = stopwatch
        self.skipped: set[int] = set()

    def read(self, groups: Sequence[Sequence[int]]) -> Iterator[GroupActivations]:
        """The activations of each group, in order.

        Raises:
            InputError: an image cannot be read (unless skipped), a worker was lost, or an
                activation is not finite.
        """
        try:
            try:
                yield from self._read(groups)
            except (ConnectionError, EOFError):
                if self.workers:  # the pipe to a lost worker breaks before its signal arrives
                    time.sleep(_SIGNAL_SECONDS)
                raise
        except RuntimeError as error:
            raise lost_worker_error(error) or error from None

    def activations(self, images: Float[Tensor, "batch 3 height width"]) -> Activations:
        """x and y of images; another reader may take them from another pass."""
        return self.clean(images)

    def clean(self, images: Float[Tensor, "batch 3 height width"]) -> Activations:
        """x and y of the unaltered pass."""
        return capture(self.vit, images)

    def _read(self, groups: Sequence[Sequence[int]]) -> Iterator[GroupActivations]:
        device = next(self.vit.parameters()).device
        cfg = self.vit.cfg
        images = _loaded(self.data, groups, self.workers, self.skip, device.type == "cuda")
        for group in groups:
            started = time.perf_counter()
            pixels, positions = next(images)
            self.stopwatch.add("images", started)
            started = time.perf_counter()
            readable = torch.zeros(len(group), dtype=torch.bool, device=device)
            readable[positions] = True
            activations = None if pixels is None else self.activations(pixels.to(device))
            if activations is not None and len(positions) == len(group):
                x, y = activations.x, activations.y
            else:
                shape = (cfg.n_layers, len(group), cfg.n_tokens, cfg.d_model)
                x, y = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
                if activations is not None:
                    x[:, readable], y[:, readable] = activations.x, activations.y
                read = set(positions)
                self.skipped.update(image for i, image in enumerate(group) if i not in read)
            self.stopwatch.add("vit", started)
            yield GroupActivations(x, y, readable)


class StoreReader:
    """Reads activations from an `ActivationStore`."""

    def __init__(self, store: ActivationStore, device: torch.device, stopwatch: Stopwatch):
        self.store, self.device, self.stopwatch = store, device, stopwatch
        self.skipped = set(store.unreadable)

    def read(self, groups: Sequence[Sequence[int]]) -> Iterator[GroupActivations]:
        """The activations of each group, in order.

        Raises:
            InputError: a shard of the store is gone or damaged.
        """
        for group in groups:
            started = time.perf_counter()
            stored = self.store.read(group)
            readable = torch.tensor([image not in self.store.unreadable for image in group])
            x, y, readable = (v.to(self.device) for v in (stored.x, stored.y, readable))
            self.stopwatch.add("images", started)
            yield GroupActivations(x, y, readable)


class _Groups(Dataset[Any]):
    def __init__(self, data: ImageData, groups: Sequence[Sequence[int]], skip: bool):
        self.data, self.groups, self.skip = data, groups, skip

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Any:
        group = self.groups[index]
        try:
            if self.skip:
                return self.data.readable(group)
            return self.data.batch(group)[0], list(range(len(group)))
        except InputError as error:
            # returned as a value, because a raised one would arrive with its traceback as text
            return error


def _loaded(
    data: ImageData, groups: Sequence[Sequence[int]], workers: int, skip: bool, pin: bool
) -> Iterator[tuple[Tensor | None, list[int]]]:
    loader = DataLoader(
        _Groups(data, groups, skip),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=_START_METHOD if workers else None,
        collate_fn=_as_is,
        worker_init_fn=_ignore_interrupts,
        pin_memory=pin,
        # without it the loader draws its workers' seeds from the user's generator
        generator=torch.Generator(),
    )
    for images in loader:
        if isinstance(images, InputError):
            raise images
        yield images


def lost_worker_error(error: RuntimeError) -> InputError | None:
    """The InputError to raise instead of `error`, if a process that decodes images has died.

    It is None for every other error. torch reports a lost process from a signal handler, so that
    its error may come out of any line that the main process is at.
    """
    # an exception that a worker raises says "in DataLoader worker process" instead
    if not re.search(r"DataLoader worker \(pid", str(error)):
        return None
    return InputError(
        "a process that decodes images was lost (killed, or out of memory); expected all of them "
        "to live: fewer workers need less memory, and resuming goes on from the last checkpoint."
    )


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches every process; the main one still needs images to finish its step
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_is(value: Any) -> Any:
    return value


def epoch_batches(
    plans: Sequence[ShardPlan], reader: ActivationReader, *, rows: TokenRows, skip: int = 0
) -> Iterator[TokenBatch]:
    """The batches of one epoch, with an equal number of rows from each of these shards.

    Args:
        plans: the shards of this process.
        reader: reads their activations.
        rows: the token rows of the model.
        skip: number of batches at the start that are not read, for a run that resumes.

    Raises:
        InputError: as `reader.read`.
    """
    shards = [_shard_batches(plan, reader, rows, skip) for plan in plans]
    for parts in zip(*shards, strict=True):
        yield joined(parts)


def joined(parts: Sequence[TokenBatch]) -> TokenBatch:
    """The rows of several batches in one, in order."""
    if len(parts) == 1:
        return parts[0]
    return TokenBatch(
        torch.cat([part.x for part in parts], 1),
        torch.cat([part.y for part in parts], 1),
        torch.cat([part.group for part in parts]),
    )


def _shard_batches(
    plan: ShardPlan, reader: ActivationReader, rows: TokenRows, skip: int
) -> Iterator[TokenBatch]:
    loads = plan.loads()
    load = next(loads, None)
    while load is not None and skip >= len(load.batches):
        skip -= len(load.batches)
        load = next(loads, None)
    if load is None:
        return
    groups = plan.groups()
    # rows left over from earlier loads may come from any group before
    numbers: Iterable[int] = plan.group_of(load.rows).unique().tolist()
    later = range(load.groups.stop, len(groups))
    activations = reader.read([groups[g] for g in (*numbers, *later)])
    buffer = _Buffer(plan, rows)
    while load is not None:
        buffer.expect(load)
        for number in numbers:
            buffer.place(number, next(activations))
        for positions in load.batches[skip:]:
            yield buffer.batch(positions)
        skip, load = 0, next(loads, None)
        numbers = load.groups if load is not None else ()


class _Buffer:
    """Activations of the rows of a shard's current load, in the order of its `rows`."""

    def __init__(self, plan: ShardPlan, rows: TokenRows):
        self.plan, self.groups = plan, rows.groups
        self.x = self.y = self.readable = torch.empty(0)
        self.rows = torch.empty(0, dtype=torch.long)
        self.left = self.rows

    def expect(self, load: BufferLoad) -> None:
        """Make room for a load; the rows left over from the last one move to its front."""
        if len(self.left):
            left = self.left.to(self.x.device)
            for values in (self.x, self.y):
                values[:, : len(left)] = values[:, left]
            self.readable[: len(left)] = self.readable[left]
        self.rows, self.left = load.rows, load.left
        self.sorted, self.position = load.rows.sort()

    def place(self, number: int, group: GroupActivations) -> None:
        """Copy the rows of a group that belong to the load to their positions."""
        n_images, n_tokens = group.x.shape[1:3]
        start = number * IMAGES_PER_PASS * n_tokens
        rows = torch.arange(start, start + n_images * n_tokens)
        nearest = torch.searchsorted(self.sorted, rows).clamp(max=len(self.sorted) - 1)
        in_load = self.sorted[nearest] == rows
        device = group.x.device
        position, in_load = self.position[nearest[in_load]].to(device), in_load.to(device)
        if not len(self.x):
            self._allocate(group)
        self.x[:, position] = group.x.flatten(1, 2)[:, in_load]
        self.y[:, position] = group.y.flatten(1, 2)[:, in_load]
        self.readable[position] = group.readable.repeat_interleave(n_tokens)[in_load]

    def batch(self, positions: Tensor) -> TokenBatch:
        """The rows at these positions, without those of unreadable images; there may be none."""
        group = self.groups[self.rows[positions] % self.plan.n_tokens]
        index = positions.to(self.x.device)
        readable = self.readable[index]
        index, group = index[readable], group.to(readable.device)[readable]
        return TokenBatch(self.x[:, index], self.y[:, index], group)

    def _allocate(self, group: GroupActivations) -> None:
        plan = self.plan
        # a load has at most one group more than it needs, and less than a batch left over
        most = plan.buffer_rows + IMAGES_PER_PASS * plan.n_tokens + plan.batch_rows
        size = min(most, plan.images_per_shard * plan.n_tokens)
        n_layers, _, _, d_model = group.x.shape
        self.x = group.x.new_empty(n_layers, size, d_model)
        self.y = torch.empty_like(self.x)
        self.readable = group.readable.new_empty(size)
