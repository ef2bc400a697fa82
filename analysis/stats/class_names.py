"""Class names as captions have room for."""

from __future__ import annotations

from collections.abc import Sequence


def short_names(class_names: Sequence[str]) -> dict[int, str]:
    """By label, class names without the words that all of them begin with."""
    split = [name.split() for name in class_names]
    # a name keeps its last word, and a lone class its name
    shortest = min(map(len, split), default=0) - 1 if len(split) > 1 else 0
    common = 0
    while common < shortest and len({words[common] for words in split}) == 1:
        common += 1
    return {label: " ".join(words[common:]) for label, words in enumerate(split)}
