"""Token rows and layers by name. CLS is row 0, and the patches follow in raster order.

`token_rows` gives the rows of a kind ("cls", "patch", "all") for every model; `region_rows` also
the rows of each half of a patch grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import torch
from jaxtyping import Int
from torch import Tensor

from vit_clt.choices import Region, TokenKind, check_choice
from vit_clt.errors import InputError


def token_rows(tokens: TokenKind, has_cls: bool = True) -> slice:
    """The rows of the token axis that are of the kind `tokens`, as a slice.

    Raises:
        InputError: an unknown kind, or "cls" on a model without a class token.
    """
    check_choice("tokens", tokens, get_args(TokenKind))
    if tokens == "cls" and not has_cls:
        raise InputError(
            "tokens", 'is "cls"; this model has no class token, expected "patch" or "all".'
        )
    if tokens == "all":
        return slice(None)
    if tokens == "cls":
        return slice(0, 1)
    return slice(1 if has_cls else 0, None)


def layer_list(layers: int | Iterable[int], n_layers: int) -> list[int]:
    """The layers sorted and without repeats; negative ones count from the end.

    Raises:
        InputError: no layer, or one outside the model.
    """
    layers = [layers] if isinstance(layers, int) else list(layers)
    for layer in layers:
        if not -n_layers <= layer < n_layers:
            raise InputError(
                "layers", f"contains {layer}; expected layers from 0 to {n_layers - 1}."
            )
    if not layers:
        raise InputError(
            "layers", f"is empty; expected at least one layer from 0 to {n_layers - 1}."
        )
    return sorted({layer % n_layers for layer in layers})


def patch_rows_unread(layer: int, n_layers: int, pools_cls: bool) -> bool:
    """Whether no patch row of this layer's MLP output can reach the embedding.

    This holds at the last layer of a model that pools the class token (`vit.cfg.pools_cls`): no
    attention follows, and the final LayerNorm works row by row.
    """
    return pools_cls and layer == n_layers - 1


REGION_NAMES: dict[Region, str] = {
    "all": "all rows",
    "cls": "CLS rows",
    "patch": "patch rows",
    "left_half": "left half",
    "right_half": "right half",
}


def region_rows(region: Region, grid: tuple[int, int]) -> Int[Tensor, " row"]:
    """The rows of a region as indices of the token axis, CLS first.

    A middle column of patches belongs to the left half, so that a grid of one column has no right
    half.

    Args:
        region: the region.
        grid: number of patches down and across (`vit.cfg.patch_grid`).

    Raises:
        InputError: an unknown region, or one without patches.
    """
    check_choice("region", region, get_args(Region))
    n_patches = grid[0] * grid[1]
    if region in ("all", "cls"):
        return torch.arange(1 + n_patches if region == "all" else 1)
    patches = 1 + torch.arange(n_patches).view(grid)
    left = -(-grid[1] // 2)
    halves = {"patch": patches, "left_half": patches[:, :left], "right_half": patches[:, left:]}
    if not halves[region].numel():
        raise InputError(
            "region", f'is "{region}"; a grid of {grid[1]} column has no such patches.'
        )
    return halves[region].flatten()
