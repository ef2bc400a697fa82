"""Which token rows make up which batch, as integers that are a function of the seed alone.

The images of an epoch are put in random order and divided among shards. A shard reads its images in
groups and loads their token rows into a buffer. When the buffer is full it is shuffled and emptied
in whole batches; the rows left over belong to the next load. Nothing here depends on what was
trained before, so that a run that resumes finds its place by counting.

The number of a row is (position of its image in the order of the shard) * n_tokens + token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Int
from torch import Tensor

from vit_clt.hooks.activations import IMAGES_PER_PASS
from vit_clt.transcoder.train_config import TrainConfig


def seeded(*parts: object) -> torch.Generator:
    """A random generator whose seed is a hash of `parts`; other parts give independent numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def held_out_images(settings: TrainConfig, n_images: int) -> tuple[list[int], list[int]]:
    """Numbers of the images that are held out, drawn by the seed, and of those trained on."""
    order = torch.randperm(n_images, generator=seeded(settings.seed, "validation")).tolist()
    n_held_out = settings.held_out(n_images)
    return sorted(order[:n_held_out]), sorted(order[n_held_out:])


def in_groups(images: Sequence[int]) -> list[Sequence[int]]:
    """The images in the order given, in groups of as many as go through the ViT together."""
    return [images[i : i + IMAGES_PER_PASS] for i in range(0, len(images), IMAGES_PER_PASS)]


@dataclass(frozen=True)
class BufferLoad:
    """The rows that are in a shard's buffer together, and the batches they are emptied into."""

    groups: range
    """Numbers of the groups of images that are read for it."""
    rows: Int[Tensor, " row"]
    """Numbers of the rows in the buffer: those left over, then those of `groups`."""
    order: Int[Tensor, " row"]
    """The shuffled order, as positions in `rows`."""
    batches: list[Int[Tensor, " _"]]
    """Positions in `rows` of each batch."""
    left: Int[Tensor, " rest"]
    """Positions in `rows` of the rows that are left over for the next load."""


@dataclass(frozen=True)
class ShardPlan:
    """The batches of one shard in one epoch.

    Args:
        seed, epoch, shard: the order of the rows is a function of these.
        n_shards: number of shards.
        images: the training images, by row of the data set. An epoch of several shards leaves out
            the few that come last in its order, so that all shards are equally long.
        n_tokens: token rows of an image.
        batch_rows: token rows of a batch that come from this shard.
        buffer_rows: the buffer is loaded with at least this many token rows.
    """

    seed: int
    epoch: int
    shard: int
    n_shards: int
    images: Sequence[int]
    n_tokens: int
    batch_rows: int
    buffer_rows: int

    @property
    def images_per_shard(self) -> int:
        """Number of images that a shard reads in one epoch."""
        return len(self.images) // self.n_shards

    @property
    def n_batches(self) -> int:
        """Number of batches in one epoch; the last batch may be smaller."""
        return ceil(self.images_per_shard * self.n_tokens / self.batch_rows)

    def groups(self) -> list[Sequence[int]]:
        """The images of this shard in their order, by row of the data set, in groups."""
        generator = seeded(self.seed, "images", self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        start = self.shard * self.images_per_shard
        positions = order[start : start + self.images_per_shard].tolist()
        return in_groups([self.images[i] for i in positions])

    def loads(self) -> Iterator[BufferLoad]:
        """The loads of the buffer, one after another, to the end of the epoch."""
        n_groups = ceil(self.images_per_shard / IMAGES_PER_PASS)
        group_rows = IMAGES_PER_PASS * self.n_tokens
        end = self.images_per_shard * self.n_tokens
        left, start, number = torch.empty(0, dtype=torch.long), 0, 0
        while start < n_groups:
            missing = max(1, self.buffer_rows - len(left))
            stop = min(n_groups, start + ceil(missing / group_rows))
            new = torch.arange(start * group_rows, min(stop * group_rows, end))
            rows = torch.cat([left, new])
            generator = seeded(self.seed, "rows", self.epoch, self.shard, number)
            order = torch.randperm(len(rows), generator=generator)
            last = stop == n_groups
            whole = len(rows) if last else len(rows) - len(rows) % self.batch_rows
            batches = list(order[:whole].split(self.batch_rows)) if whole else []
            yield BufferLoad(range(start, stop), rows, order, batches, order[whole:])
            left, start, number = rows[order[whole:]], stop, number + 1

    def group_of(self, rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """The number of the group that each row belongs to."""
        return rows // (IMAGES_PER_PASS * self.n_tokens)
