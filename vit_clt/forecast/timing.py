"""Seconds of a piece of work on a device, from a few runs of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch


def fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of three runs (fewer if slow), as other programs only add time."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times: list[float] = []
    wait()
    while len(times) < 3 and sum(times) < 0.5:
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return min(times)
