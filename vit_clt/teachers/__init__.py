"""Shipped teachers, in open_clip's `local-dir:` form."""

from __future__ import annotations

from importlib.resources import files

SHIPPED = ("digits", "adding")
"""Each is also the name of the form of data it was trained on."""


def shipped_teacher(model: str) -> str | None:
    """`local-dir:PATH` of a teacher that comes with this package; None for any other name."""
    return f"local-dir:{files('vit_clt.teachers') / model}" if model in SHIPPED else None
