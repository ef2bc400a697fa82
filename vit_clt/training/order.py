"""Which token rows make up which batch: integers only, and a function of the seed alone.

An epoch's images are put in random order and dealt to shards. A shard reads its images in groups;
their token rows wait in a buffer that is shuffled when it is full and emptied in whole batches,
what is left over waiting for the next filling. Nothing here depends on what was trained before, so
a run that resumes finds its place by counting.

A row is named by its place in the shard: (image's place in the order) * n_tokens + token.
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


def seeded(*parts: object) -> torch.Generator:
    """A generator for one purpose, named by `parts`; no other purpose shares its numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def in_groups(images: Sequence[int]) -> list[Sequence[int]]:
    """Images in the order given, as many at a time as go through the ViT together."""
    return [images[i : i + IMAGES_PER_PASS] for i in range(0, len(images), IMAGES_PER_PASS)]


@dataclass(frozen=True)
class Filling:
    """One filling of a shard's buffer."""

    groups: range
    """Groups of images that are read for it."""
    rows: Int[Tensor, " row"]
    """The rows it holds: those left over, then those of `groups`."""
    order: Int[Tensor, " row"]
    """The shuffle: positions in `rows`."""
    batches: list[Int[Tensor, " _"]]
    """Positions in `rows` of each batch."""
    left: Int[Tensor, " rest"]
    """Positions in `rows` of what waits for the next filling."""


@dataclass(frozen=True)
class ShardPlan:
    """The batches of one shard in one epoch.

    Args:
        seed, epoch, shard: what the order is a function of.
        images: rows of the data set to go through; an epoch of several shards leaves out the
            few that come last in its order, so that all shards are of one length.
        n_tokens: rows of an image.
        batch_rows: rows of a batch that come from this shard.
        buffer_rows: the buffer is filled up to at least this many rows.
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
        """Images a shard reads in one epoch."""
        return len(self.images) // self.n_shards

    @property
    def n_batches(self) -> int:
        """Batches of one epoch, the last one perhaps smaller."""
        return ceil(self.images_per_shard * self.n_tokens / self.batch_rows)

    def groups(self) -> list[Sequence[int]]:
        """Rows of the data set, by group."""
        generator = seeded(self.seed, "images", self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        start = self.shard * self.images_per_shard
        mine = [self.images[i] for i in order[start : start + self.images_per_shard].tolist()]
        return in_groups(mine)

    def fillings(self) -> Iterator[Filling]:
        """One after another, to the end of the epoch."""
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
            yield Filling(range(start, stop), rows, order, batches, order[whole:])
            left, start, number = rows[order[whole:]], stop, number + 1

    def group_of(self, rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Which group each row belongs to."""
        return rows // (IMAGES_PER_PASS * self.n_tokens)
