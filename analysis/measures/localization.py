"""Moran's I (1950) of a unit's activations over the patch grid: do neighbouring patches agree?

    I = n / W * sum_{i,j} w_ij (v_i - m) (v_j - m) / sum_i (v_i - m)^2

of one image, where v_i = |activation| on patch i, m is their mean over the n patches, w_ij is 1
for patches that share an edge (rook neighbours) and else 0, and W is the sum of all w_ij. Over all
ways to deal the same values to the patches its mean is -1 / (n - 1).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.errors import InputError


def morans_i(maps: Float[Tensor, "down across unit"]) -> Float[Tensor, " unit"]:
    """Moran's I of every unit's map of one image; NaN where all patches have the same value.

    Args:
        maps: values on the patch grid.

    Raises:
        InputError: a grid of one patch, where there are no neighbours.
    """
    down, across, _ = maps.shape
    edges = down * (across - 1) + across * (down - 1)
    if not edges:
        raise InputError("model", "has one patch; expected a grid, whose patches have neighbours.")
    centred = maps - maps.mean((0, 1))
    products = (centred[1:] * centred[:-1]).sum((0, 1))
    products += (centred[:, 1:] * centred[:, :-1]).sum((0, 1))
    # every edge counts twice in W, and in the sum over i and j
    value = down * across / edges * products / centred.square().sum((0, 1))
    # a map without variance leaves rounding errors, which must not look like variance
    return value.masked_fill(maps.amax((0, 1)) == maps.amin((0, 1)), torch.nan)


def expected_morans_i(n_patches: int) -> float:
    """The mean of Moran's I over all ways to deal the same values to the patches."""
    return -1 / (n_patches - 1)


class MoranSums:
    """The mean of Moran's I over the images on which each unit of a layer is active on a patch.

    Args:
        n_units: number of units.
    """

    def __init__(self, n_units: int):
        self._sums = np.zeros(n_units)
        self.images: Int[np.ndarray, " unit"] = np.zeros(n_units, np.int64)
        """Images that count: active on a patch, and not equally on all."""

    def add(self, maps: Float[Tensor, "down across some"], units: Int[Tensor, " some"]) -> None:
        """Count one image.

        Args:
            maps: |activations| of the units that may be active on it.
            units: which units these are.
        """
        values = morans_i(maps).double().cpu().numpy()
        at = units.cpu().numpy()
        self._sums[at] += np.nan_to_num(values)
        self.images[at] += np.isfinite(values)

    def mean(self) -> Float[np.ndarray, " unit"]:
        """Mean over the images that count; NaN where there is none."""
        return self._sums / np.where(self.images, self.images, np.nan)
