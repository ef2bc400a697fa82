"""Names that options take; free of torch, so that the command line can list them at once."""

from __future__ import annotations

from typing import Literal, get_args

from vit_clt.errors import InputError

Backend = Literal["auto", "dense", "sparse"]
LrSchedule = Literal["linear", "cosine", "constant"]
Optimiser = Literal["adamw", "adamw8bit"]
Precision = Literal["fp32", "tf32", "bf16"]
Unreadable = Literal["stop", "skip"]


def check_backend(backend: str) -> Backend:
    """`backend` itself. Raises InputError if there is no such back end."""
    for known in get_args(Backend):
        if backend == known:
            return known
    raise InputError(f'backend is "{backend}"; expected "auto", "dense" or "sparse".')
