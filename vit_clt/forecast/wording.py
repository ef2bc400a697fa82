"""Times and sizes as text, rounded for people."""

from __future__ import annotations


def duration(seconds: float | int) -> str:
    """A number of seconds as text, in seconds, minutes, hours or days."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{max(1, round(seconds))} s"


def byte_size(n_bytes: float | int) -> str:
    """A number of bytes as text, in MB or GB."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{max(n_bytes, 1e5) / 1e6:.1f} MB" if n_bytes < 1e7 else f"{n_bytes / 1e6:.0f} MB"
