"""Donors: the images whose values stand in for those of another image in a resample."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int

from vit_clt.errors import InputError


def donor_cycle(n: int, seed: int = 0) -> list[int]:
    """The donor of each of n images, drawn as one random cycle; no image is its own donor.

    Entry i of the list is the number of the image whose values stand in for those of image i.

    Raises:
        InputError: fewer than two images.
    """
    if n < 2:
        raise InputError("data", f'has {n} image; fill "resample" needs another one to draw from.')
    cycle = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty_like(cycle)
    donors[cycle] = cycle.roll(-1)
    return donors.tolist()


def donors_of_other_labels(labels: Int[np.ndarray, " image"], seed: int = 0) -> list[int]:
    """For each image another one at random, of those with another label.

    Raises:
        InputError: all images have one label.
    """
    rng = np.random.default_rng(seed)
    others = {label: np.flatnonzero(labels != label) for label in set(labels.tolist())}
    if len(others) < 2:
        raise InputError("data", "has images of one label; floors take labels of other classes.")
    return [int(rng.choice(others[label])) for label in labels.tolist()]
