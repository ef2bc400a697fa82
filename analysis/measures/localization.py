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

from vit_clt.analysis.features.active import ActiveCodes, active_codes
from vit_clt.errors import InputError
from vit_clt.kernels.codes import Codes

_ROUNDING = 1e-12
"""Of the sum of squares: what a variance of 0 can be by rounding, in float64."""


def morans_i(codes: Codes, first_patch: int, grid: tuple[int, int]) -> Float[Tensor, "image unit"]:
    """Moran's I of every unit's map of every image; NaN where all patches have the same value.

    Args:
        codes: activations "image token unit".
        first_patch: the token row of the first patch, which the others follow in raster order.
        grid: number of patches down and across.

    Raises:
        InputError: a grid of one patch, where there are no neighbours.
    """
    down, across = grid
    edges = down * (across - 1) + across * (down - 1)
    if not edges:
        raise InputError("model", "has one patch; expected a grid, whose patches have neighbours.")
    active = active_codes(codes.at_rows(slice(first_patch, None)))
    values = active.values.abs().double()
    n_images, n_units = active.n_images, active.n_features
    unit = active.images * n_units + active.features

    def sums(each: Float[Tensor, " entry"]) -> Float[Tensor, "image unit"]:
        # of no entries torch counts in integers
        found = torch.bincount(unit, each, minlength=n_images * n_units).double()
        return found.view(n_images, n_units)

    i, j = active.tokens // across, active.tokens % across
    neighbours = (
        (i > 0).double() + (i < down - 1).double() + (j > 0).double() + (j < across - 1).double()
    )
    products = _edge_products(active, values, grid)
    n = down * across
    total, square = sums(values), sums(values.square())
    mean = total / n
    variance = square - n * mean.square()
    # every edge counts twice in W, and in the sum over i and j
    top = 2 * sums(products) - 2 * mean * sums(values * neighbours) + 2 * edges * mean.square()
    value = n / (2 * edges) * top / variance
    # what rounding leaves of a map without variance must not look like variance
    return value.masked_fill(variance <= _ROUNDING * square, torch.nan)


def _edge_products(
    active: ActiveCodes, values: Float[Tensor, " entry"], grid: tuple[int, int]
) -> Float[Tensor, " entry"]:
    """Each entry's value times those of the same unit on the patches to its right and below."""
    down, across = grid
    i, j = active.tokens // across, active.tokens % across
    width = active.n_features
    # a border of silent patches below and to the right
    shape = active.n_images * (down + 1) * (across + 1) * width
    place = ((active.images * (down + 1) + i) * (across + 1) + j) * width + active.features
    dense = values.new_zeros(shape).scatter_(0, place, values)
    return values * (dense[place + width] + dense[place + (across + 1) * width])


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

    def add(self, values: Float[Tensor, "image unit"]) -> None:
        """Count Moran's I of a batch of images."""
        self._sums += values.nan_to_num(0.0).double().sum(0).cpu().numpy()
        self.images += values.isfinite().sum(0).cpu().numpy()

    def mean(self) -> Float[np.ndarray, " unit"]:
        """Mean over the images that count; NaN where there is none."""
        return self._sums / np.where(self.images, self.images, np.nan)
