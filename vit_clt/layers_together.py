"""Layers that are kept in memory at the same time, where those of a model would take too much."""

from __future__ import annotations

from collections.abc import Mapping


def layers_together(sizes: Mapping[int, int], room: int) -> list[list[int]]:
    """The layers in groups of neighbours, each as large as fits in `room`; at least one layer.

    Args:
        sizes: bytes of each layer, in the order in which layers are taken.
        room: bytes of a group.
    """
    groups: list[list[int]] = []
    left = 0
    for layer, size in sizes.items():
        if not groups or size > left:
            groups.append([])
            left = room
        groups[-1].append(layer)
        left -= size
    return groups
