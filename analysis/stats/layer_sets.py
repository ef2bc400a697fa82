"""Sets of layers that are ablated together, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

LayerSet = tuple[int, ...]


def layer_sets(n_layers: int, *, pairs: bool = False) -> list[LayerSet]:
    """Every layer alone, every range s..L-1 and every range 0..s; with `pairs` every two layers.

    Layers can stand in for one another: one that costs nothing alone may be missed in a range.
    """
    layers = range(n_layers)
    sets: list[LayerSet] = [(s,) for s in layers]
    sets += [tuple(range(s, n_layers)) for s in layers]
    sets += [tuple(range(s + 1)) for s in layers]
    if pairs:
        sets += combinations(layers, 2)
    return list(dict.fromkeys(sets))


def layers_text(layers: Iterable[int]) -> str:
    """Layers as text: "3", "4-7" where they are consecutive, else "1+5"."""
    chosen = sorted(layers)
    if len(chosen) > 1 and chosen == list(range(chosen[0], chosen[-1] + 1)):
        return f"{chosen[0]}-{chosen[-1]}"
    return "+".join(map(str, chosen))
