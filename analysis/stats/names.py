"""Short names of classes, features and sets of layers, for captions and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations


def short_names(class_names: Sequence[str]) -> dict[int, str]:
    """Class names by label, without the words that all of them begin with."""
    split = [name.split() for name in class_names]
    # A name keeps its last word, and a single class keeps its whole name.
    shortest = min(map(len, split), default=0) - 1 if len(split) > 1 else 0
    common = 0
    while common < shortest and len({words[common] for words in split}) == 1:
        common += 1
    return {label: " ".join(words[common:]) for label, words in enumerate(split)}


Texts = Mapping[tuple[int, int], str]
"""The name of each (layer, feature) that has one."""


def feature_text(layer: int, feature: int, names: Texts) -> str:
    """A feature as "7:12", or as "7:12 frog" where it has a name."""
    address, name = f"{layer}:{feature}", names.get((layer, feature))
    return address if name is None else f"{address} {name}"


LayerSet = tuple[int, ...]


def layer_sets(n_layers: int, *, pairs: bool = False) -> list[LayerSet]:
    """Every layer alone, every range s..L-1, every range 0..s, and with `pairs` every two layers.

    Ranges are needed because layers can stand in for one another: ablating a layer alone may cost
    nothing, while ablating it together with others does.
    """
    layers = range(n_layers)
    sets: list[LayerSet] = [(s,) for s in layers]
    sets += [tuple(range(s, n_layers)) for s in layers]
    sets += [tuple(range(s + 1)) for s in layers]
    if pairs:
        sets += combinations(layers, 2)
    return list(dict.fromkeys(sets))


def layers_text(layers: Iterable[int]) -> str:
    """Layers as text: "3" for one, "4-7" where they are consecutive, else "1+5"."""
    ordered = sorted(layers)
    if len(ordered) > 1 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}-{ordered[-1]}"
    return "+".join(map(str, ordered))
