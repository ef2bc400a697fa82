"""What several commands of one process load alike is loaded once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Loaded = TypeVar("Loaded")

_shared: dict[Hashable, object] | None = None


@contextmanager
def loaded_once() -> Iterator[None]:
    """A context in which `once` loads only what it has not loaded yet. At its end all is let go."""
    global _shared
    outer = _shared
    _shared = {} if outer is None else outer
    try:
        yield
    finally:
        _shared = outer


def once(load: Callable[[], Loaded], *key: Hashable) -> Loaded:
    """What `load()` gives, or in `loaded_once` what it gave for the same key.

    Args:
        load: loads it.
        key: all that the result depends on. A ViT, a CLT or images are equal to themselves alone.
    """
    if _shared is None:
        return load()
    if key not in _shared:
        _shared[key] = load()
    found: Loaded = _shared[key]  # type: ignore[assignment]
    return found
