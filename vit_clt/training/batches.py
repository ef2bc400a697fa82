"""Images -> shuffled token batches, for one process of perhaps several.

Activations are recomputed by the ViT as they are needed, or read from a cache. What a shard's
buffer holds is never stored: a run that resumes reads again the groups of images that have rows in
it, in the same groups, so that the same kernels give the same bits.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks.activations import IMAGES_PER_PASS, capture
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT
from vit_clt.training.cache import ActivationCache
from vit_clt.training.order import Filling, ShardPlan

# other ways to start a process would have to pickle the data set's reader
_UNTIL_THE_SIGNAL = 2.0  # seconds; the sleep ends with the signal's exception
_START_METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else None


@dataclass(frozen=True)
class TokenBatch:
    """Token rows of many images, shuffled together."""

    x: Float[Tensor, "layer token d_model"]
    y: Float[Tensor, "layer token d_model"]
    is_cls: Bool[Tensor, " token"]

    def __len__(self) -> int:
        return len(self.is_cls)


@dataclass(frozen=True)
class Group:
    """Activations of a group of images, those that cannot be read filled with zeros."""

    x: Float[Tensor, "layer image token d_model"]
    y: Float[Tensor, "layer image token d_model"]
    readable: Bool[Tensor, " image"]


@dataclass
class Waits:
    """Seconds spent on reading images, in the ViT, and on everything else since the last look."""

    seconds: dict[str, float] = field(default_factory=lambda: {"images": 0.0, "vit": 0.0})
    since: float = field(default_factory=time.perf_counter)

    def timed(self, part: str, started: float) -> None:
        """Book the time since `started` on `part`."""
        self.seconds[part] += time.perf_counter() - started

    def shares(self) -> dict[str, float]:
        """Shares of the time since the last look; "step" is what remains."""
        now = time.perf_counter()
        total = max(now - self.since, 1e-9)
        found = {part: min(1.0, seconds / total) for part, seconds in self.seconds.items()}
        self.seconds, self.since = dict.fromkeys(self.seconds, 0.0), now
        return {**found, "step": max(0.0, 1 - sum(found.values()))}


@runtime_checkable
class Source(Protocol):
    """Where activations come from."""

    skipped: set[int]
    """Rows of the data set that could not be read so far."""

    def read(self, groups: Sequence[Sequence[int]]) -> Iterator[Group]:
        """Activations of these groups of rows, in order."""
        ...


class Recomputed:
    """Activations from the ViT itself.

    Args:
        vit, data: the teacher and its images.
        workers: processes that decode images ahead; 0 decodes in this one.
        skip: leave out unreadable images instead of stopping at them.
        waits: where the time is booked.
    """

    def __init__(self, vit: HookedViT, data: ImageData, workers: int, skip: bool, waits: Waits):
        self.vit, self.data, self.workers, self.skip = vit, data, workers, skip
        self.waits = waits
        self.skipped: set[int] = set()

    def read(self, groups: Sequence[Sequence[int]]) -> Iterator[Group]:
        """Activations of these groups of rows, in order.

        Raises:
            InputError: an image cannot be read (unless skipped), a worker was lost, or an
                activation is not finite.
        """
        try:
            try:
                yield from self._read(groups)
            except (ConnectionError, EOFError):
                if self.workers:  # the pipe to a worker breaks before a signal tells of its end
                    time.sleep(_UNTIL_THE_SIGNAL)
                raise
        except RuntimeError as error:
            raise lost_worker(error) or error from None

    def _read(self, groups: Sequence[Sequence[int]]) -> Iterator[Group]:
        device = next(self.vit.parameters()).device
        cfg = self.vit.cfg
        images = _loaded(self.data, groups, self.workers, self.skip, device.type == "cuda")
        for rows in groups:
            started = time.perf_counter()
            pixels, positions = next(images)
            self.waits.timed("images", started)
            started = time.perf_counter()
            readable = torch.zeros(len(rows), dtype=torch.bool, device=device)
            readable[positions] = True
            found = None if pixels is None else capture(self.vit, pixels.to(device))
            if found is not None and len(positions) == len(rows):
                x, y = found.x, found.y
            else:
                shape = (cfg.n_layers, len(rows), cfg.n_tokens, cfg.d_model)
                x, y = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
                if found is not None:
                    x[:, readable], y[:, readable] = found.x, found.y
                read = set(positions)
                self.skipped.update(row for i, row in enumerate(rows) if i not in read)
            self.waits.timed("vit", started)
            yield Group(x, y, readable)


class Cached:
    """Activations from an `ActivationCache`."""

    def __init__(self, cache: ActivationCache, device: torch.device, waits: Waits):
        self.cache, self.device, self.waits = cache, device, waits
        self.skipped = set(cache.unreadable)

    def read(self, groups: Sequence[Sequence[int]]) -> Iterator[Group]:
        """Activations of these groups of rows, in order.

        Raises:
            InputError: a shard of the cache is gone or damaged.
        """
        for rows in groups:
            started = time.perf_counter()
            found = self.cache.read(rows)
            readable = torch.tensor([row not in self.cache.unreadable for row in rows])
            x, y, readable = (v.to(self.device) for v in (found.x, found.y, readable))
            self.waits.timed("images", started)
            yield Group(x, y, readable)


class _Groups(Dataset[Any]):
    def __init__(self, data: ImageData, groups: Sequence[Sequence[int]], skip: bool):
        self.data, self.groups, self.skip = data, groups, skip

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Any:
        rows = self.groups[index]
        try:
            if self.skip:
                return self.data.readable(rows)
            return self.data.batch(rows)[0], list(range(len(rows)))
        except InputError as error:
            # handed over as a value: a worker's exception arrives with its traceback as text
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
        pin_memory=pin,
        # otherwise the loader draws its workers' seeds from the user's generator
        generator=torch.Generator(),
    )
    for found in loader:
        if isinstance(found, InputError):
            raise found
        yield found


def lost_worker(error: RuntimeError) -> InputError | None:
    """What to tell the user if `error` is torch's, for a process that died while it decoded images.

    torch raises it from a signal handler: wherever the main process is at that moment.
    """
    # a worker's own exception says "in DataLoader worker process"
    if not re.search(r"DataLoader worker \(pid", str(error)):
        return None
    return InputError(
        "a process that decodes images was lost (killed, or out of memory); expected all of them "
        "to live: fewer workers need less memory, and resuming goes on from the last checkpoint."
    )


def _as_is(value: Any) -> Any:
    return value


@torch.no_grad()
def norm_scales(
    groups: Iterable[Group], d_model: int
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """Factors per layer for x and for y that bring the mean norm of a token to sqrt(d_model).

    Raises:
        InputError: a layer reads or writes nothing but zeros, or no image can be read.
    """
    totals: Tensor | None = None
    rows = 0
    for group in groups:
        # unreadable images are zeros, which add nothing
        norms = torch.stack([v.double().norm(dim=-1).sum((1, 2)) for v in (group.x, group.y)])
        totals = norms if totals is None else totals + norms
        rows += int(group.readable.sum()) * group.x.shape[2]
    if totals is None or rows == 0:
        raise InputError("none of the images can be read; expected at least one.")
    for values, point in zip(totals, (HOOK_IN, HOOK_OUT), strict=True):
        if (values == 0).any():
            silent = point.format(l=int((values == 0).nonzero()[0]))
            raise InputError(f"{silent} is zero on every token; expected activations that vary.")
    scales = (d_model**0.5 * rows / totals).float()
    return scales[0], scales[1]


def epoch_batches(
    plans: Sequence[ShardPlan], source: Source, *, has_cls: bool, skip: int = 0
) -> Iterator[TokenBatch]:
    """One epoch's batches, an equal part from each of these shards.

    Args:
        plans: this process's shards.
        source: where their activations come from.
        has_cls: whether row 0 of an image is CLS.
        skip: batches that are counted, not read: where a resumed run goes on.

    Raises:
        InputError: what `source.read` raises.
    """
    shards = [_shard_batches(plan, source, has_cls, skip) for plan in plans]
    for parts in zip(*shards, strict=True):
        if len(parts) == 1:
            yield parts[0]
        else:
            yield TokenBatch(
                torch.cat([part.x for part in parts], 1),
                torch.cat([part.y for part in parts], 1),
                torch.cat([part.is_cls for part in parts]),
            )


def _shard_batches(
    plan: ShardPlan, source: Source, has_cls: bool, skip: int
) -> Iterator[TokenBatch]:
    fillings = plan.fillings()
    filling = next(fillings, None)
    while filling is not None and skip >= len(filling.batches):
        skip -= len(filling.batches)
        filling = next(fillings, None)
    if filling is None:
        return
    groups = plan.groups()
    # what earlier fillings left over may come from any group before
    wanted: Iterable[int] = plan.group_of(filling.rows).unique().tolist()
    later = range(filling.groups.stop, len(groups))
    read = source.read([groups[g] for g in (*wanted, *later)])
    buffer = _Buffer(plan, has_cls)
    while filling is not None:
        buffer.expect(filling)
        for number in wanted:
            buffer.place(number, next(read))
        for positions in filling.batches[skip:]:
            yield buffer.batch(positions)
        skip, filling = 0, next(fillings, None)
        wanted = filling.groups if filling is not None else ()


class _Buffer:
    """Rows of a shard, each at its position in the filling."""

    def __init__(self, plan: ShardPlan, has_cls: bool):
        self.plan, self.has_cls = plan, has_cls
        self.x = self.y = self.readable = torch.empty(0)
        self.rows = torch.empty(0, dtype=torch.long)
        self.left = self.rows

    def expect(self, filling: Filling) -> None:
        """Make room for a filling; what was left over moves to its front."""
        if len(self.left):
            left = self.left.to(self.x.device)
            for values in (self.x, self.y):
                values[:, : len(left)] = values[:, left]
            self.readable[: len(left)] = self.readable[left]
        self.rows, self.left = filling.rows, filling.left
        self.sorted, self.position = filling.rows.sort()

    def place(self, number: int, group: Group) -> None:
        """Put those rows of a group that the filling holds where they belong."""
        n_images, n_tokens = group.x.shape[1:3]
        start = number * IMAGES_PER_PASS * n_tokens
        rows = torch.arange(start, start + n_images * n_tokens)
        found = torch.searchsorted(self.sorted, rows).clamp(max=len(self.sorted) - 1)
        held = self.sorted[found] == rows
        device = group.x.device
        position, held = self.position[found[held]].to(device), held.to(device)
        if not len(self.x):
            self._allocate(group)
        self.x[:, position] = group.x.flatten(1, 2)[:, held]
        self.y[:, position] = group.y.flatten(1, 2)[:, held]
        self.readable[position] = group.readable.repeat_interleave(n_tokens)[held]

    def batch(self, positions: Tensor) -> TokenBatch:
        """The rows at these positions, without those of unreadable images: perhaps none."""
        is_cls = self.rows[positions] % self.plan.n_tokens == 0
        index = positions.to(self.x.device)
        kept = self.readable[index]
        index, is_cls = index[kept], is_cls.to(kept.device)[kept] & self.has_cls
        return TokenBatch(self.x[:, index], self.y[:, index], is_cls)

    def _allocate(self, group: Group) -> None:
        plan = self.plan
        # a filling holds at most one group more than it must, and less than a batch left over
        most = plan.buffer_rows + IMAGES_PER_PASS * plan.n_tokens + plan.batch_rows
        size = min(most, plan.images_per_shard * plan.n_tokens)
        n_layers, _, _, d_model = group.x.shape
        self.x = group.x.new_empty(n_layers, size, d_model)
        self.y = torch.empty_like(self.x)
        self.readable = group.readable.new_empty(size)
