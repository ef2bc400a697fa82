"""NumPy's work on the rows of a chunk, a few rows at a time, on as many threads as torch uses.

NumPy runs on the thread that calls it, without the interpreter's lock in what takes long, so that
threads of our own run side by side. Rows are cut alike for any number of threads, and what comes
back is in order: results do not depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

Found = TypeVar("Found")

Array = NDArray[Any]

# bytes worked on at a time, so that they stay in the second-level cache
_CACHED = 2**20


def over_rows(work: Callable[[Array, slice], Found], rows: Array) -> list[Found]:
    """`work` on some rows at a time and on where they lie, in order.

    `work` must leave torch alone, which has threads of its own: it runs beside itself.
    """
    size = max(1, _CACHED // rows[:1].nbytes)
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    threads = min(torch.get_num_threads(), len(parts))
    if threads < 2:
        return [work(rows[part], part) for part in parts]
    pool = _pool(os.getpid(), threads)
    return list(pool.map(work, [rows[part] for part in parts], parts))


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # by process: a fork has none of its parent's threads
    return ThreadPoolExecutor(threads, thread_name_prefix="vit-clt-rows")
