"""Keeps freed memory in the process while a CLT is trained.

glibc gives an array above 32 MB back to the system when it is freed, and the next one is faulted in
page by page: at the paper's size gradients and work buffers cost more CPU time so than they take to
compute. Nothing of this exists on other systems, nor for memory of a GPU.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of mallopt, as numbered in malloc.h."""
NEVER = -1
"""As a trim threshold: memory at the end of the heap is never given back."""
_DEFAULTS = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}
_OF_THE_USER = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """A context in which freed memory stays in the process; True where that could be arranged.

    At its end glibc's defaults hold again, and what is free is given back. What the user has set in
    the environment is left as it is.
    """
    libc = _glibc()
    arranged = (
        libc is not None
        and not any(name in os.environ for name in _OF_THE_USER)
        and all(libc("mallopt")(*each) for each in ((MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER)))
    )
    try:
        yield arranged
    finally:
        if arranged and libc is not None:
            for parameter, value in _DEFAULTS.items():
                libc("mallopt")(parameter, value)
            libc("malloc_trim")(0)


def _glibc() -> Callable[[str], Callable[..., int]] | None:
    """The functions of glibc by name; None on a system with another C library."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return lambda name: getattr(library, name)
