"""Have the images a feature is most active on one class? Beside what random images would have."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

PURITY = ("purity", "base", "purity_by_chance")
_DRAWS = 1000


def purity(
    rows: Int[np.ndarray, "feature place"],
    labels: Int[np.ndarray, " image"],
    by_chance: Float[np.ndarray, " images_and_none"],
) -> dict[str, np.ndarray]:
    """Of every feature's top images, by name, one number a feature.

    `label`: the most common label (ties: the lowest), -1 where none is known. `purity`: its share
    of the labelled top images. `base`: its share of all labelled images. `purity_by_chance`: see
    there, for as many images. NaN without a label.

    Args:
        rows: each feature's top images, -1 for none.
        labels: of all images, -1 where unknown.
        by_chance: `purity_by_chance` of at least as many images as there are places.
    """
    known_labels = labels[labels >= 0]
    found = np.where(rows >= 0, labels[rows], -1)
    known = (found >= 0).sum(1)
    n_classes = int(labels.max()) + 1
    if not n_classes:
        nothing = np.full(len(rows), np.nan)
        return {"label": np.full(len(rows), -1), **dict.fromkeys(PURITY, nothing)}
    feature, place = (found >= 0).nonzero()
    at = feature * n_classes + found[feature, place]
    counts = np.bincount(at, minlength=len(rows) * n_classes).reshape(-1, n_classes)
    label = counts.argmax(1)
    shares = np.bincount(known_labels, minlength=n_classes) / len(known_labels)
    values = (
        counts.max(1) / np.where(known, known, np.nan),
        np.where(known, shares[label], np.nan),
        by_chance[known],
    )
    return {"label": np.where(known, label, -1), **dict(zip(PURITY, values, strict=True))}


def purity_by_chance(
    labels: Int[np.ndarray, " image"], most: int, seed: int
) -> Float[np.ndarray, " images_and_none"]:
    """Mean purity of 0, 1, ... `most` labelled images drawn without repeats, over 1,000 draws.

    NaN for none, and for more than there are.
    """
    known = labels[labels >= 0]
    available = min(most, len(known))
    means = np.full(most + 1, np.nan)
    if not available:
        return means
    rng = np.random.default_rng(seed)
    largest = np.zeros((_DRAWS, available))
    for draw in largest:
        taken = known[rng.choice(len(known), available, replace=False)]
        counts = (taken[:, None] == np.arange(known.max() + 1)).cumsum(0)
        draw[:] = counts.max(1) / np.arange(1, available + 1)
    means[1 : available + 1] = largest.mean(0)
    return means
