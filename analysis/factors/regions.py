"""Which token rows of an image: all, the class token, the patches, or one half of their grid."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from vit_clt.errors import InputError

Region = Literal["all", "cls", "patch", "left_half", "right_half"]
REGION_NAMES: dict[Region, str] = {
    "all": "all rows",
    "cls": "CLS rows",
    "patch": "patch rows",
    "left_half": "left half",
    "right_half": "right half",
}


def region_rows(region: Region, grid: tuple[int, int]) -> Int[Tensor, " row"]:
    """Rows of the token axis, CLS first.

    A middle column of patches belongs to the left half, so a grid of one column has no right one.

    Args:
        region: which rows.
        grid: patches down and across (`vit.cfg.patch_grid`).

    Raises:
        InputError: an unknown region, or one without patches.
    """
    if region not in get_args(Region):
        known = ", ".join(f'"{each}"' for each in get_args(Region))
        raise InputError(f'region is "{region}"; expected one of {known}.')
    n_patches = grid[0] * grid[1]
    if region in ("all", "cls"):
        return torch.arange(1 + n_patches if region == "all" else 1)
    patches = 1 + torch.arange(n_patches).view(grid)
    left = -(-grid[1] // 2)
    halves = {"patch": patches, "left_half": patches[:, :left], "right_half": patches[:, left:]}
    if not halves[region].numel():
        raise InputError(f'region is "{region}"; a grid of {grid[1]} column has no such patches.')
    return halves[region].flatten()
