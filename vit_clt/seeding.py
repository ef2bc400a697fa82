"""Draws from torch's own generators that a seed repeats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """A context in which torch draws from `seed`; the user's random state is restored after it."""
    # GPUs are given by number, because torch warns where it is left to take all of several
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
