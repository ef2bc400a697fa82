"""Token rows and layers by name: the class token first, then registers, then patches.

`TokenRows` says which rows a model has; `token_rows` gives those of a kind ("cls", "register",
"patch", "all"), and `region_rows` also those of each half of the patch grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.choices import Region, TokenKind, check_choice
from vit_clt.errors import InputError

ROW_GROUPS: dict[TokenKind, list[int]] = {
    "cls": [0],
    "patch": [1],
    "register": [2],
    "all": [0, 1, 2],
}
"""The groups of rows that sums are kept of: 0 the CLS row, 1 patch rows, 2 register rows."""


@dataclass(frozen=True)
class TokenRows:
    """The token axis of a model: a class token or none, registers, and patches in raster order."""

    has_cls: bool
    n_registers: int
    """Number of tokens that are neither: registers, and DeiT's distillation token."""
    grid: tuple[int, int]
    """Number of patches down and across."""

    @property
    def first_patch(self) -> int:
        """The row of patch (0, 0), which is also the number of rows that are no patches."""
        return int(self.has_cls) + self.n_registers

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return self.first_patch + self.grid[0] * self.grid[1]

    @property
    def kinds(self) -> list[TokenKind]:
        """The kinds of rows that this model has."""
        has = {"cls": self.has_cls, "register": self.n_registers > 0}
        return [kind for kind in get_args(TokenKind) if has.get(kind, True)]

    def having(self, kinds: Iterable[TokenKind]) -> list[TokenKind]:
        """Those of these kinds that this model has."""
        return [kind for kind in kinds if kind in self.kinds]

    @property
    def groups(self) -> Int[Tensor, " token"]:
        """The group of every row, a number of `ROW_GROUPS`."""
        groups = torch.ones(self.n_tokens, dtype=torch.long)
        groups[: self.first_patch] = 2
        groups[: int(self.has_cls)] = 0
        return groups

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of rows of an image in each group."""
        return int(self.has_cls), self.n_tokens - self.first_patch, self.n_registers

    def patch(self, i: int, j: int) -> int:
        """The row of the patch that is `i` from above and `j` from the left."""
        return self.first_patch + i * self.grid[1] + j


def token_rows(tokens: TokenKind, rows: TokenRows | None = None) -> slice:
    """The rows of the token axis that are of the kind `tokens`, as a slice.

    Args:
        tokens: the kind.
        rows: the rows of the model (`vit.cfg.rows`); None is for a class token and patches.

    Raises:
        InputError: an unknown kind, or one that the model does not have.
    """
    check_choice("tokens", tokens, get_args(TokenKind))
    n_cls, first_patch = (1, 1) if rows is None else (int(rows.has_cls), rows.first_patch)
    kinds: dict[TokenKind, slice] = {
        "cls": slice(0, n_cls),
        "register": slice(n_cls, first_patch),
        "patch": slice(first_patch, None),
        "all": slice(None),
    }
    if kinds[tokens].start == kinds[tokens].stop and tokens != "all":
        name = {"cls": "class token", "register": "register tokens"}[tokens]
        there = [kind for kind, at in kinds.items() if kind == "all" or at.start != at.stop]
        raise InputError(
            "tokens",
            f'is "{tokens}"; this model has no {name}, expected '
            + " or ".join(f'"{kind}"' for kind in there)
            + ".",
        )
    return kinds[tokens]


def rows_of(point: HookPoint) -> TokenRows:
    """The token rows of the `HookedViT` that a hook point belongs to."""
    return point.__dict__["rows"]


def rows_at(point: HookPoint, tokens: TokenKind) -> slice:
    """The rows of a kind at a hook point of a `HookedViT`.

    Raises:
        InputError: an unknown kind, or one that the model does not have.
    """
    return token_rows(tokens, rows_of(point))


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


def rows_unread(tokens: TokenKind, layer: int, n_layers: int, pools_cls: bool) -> bool:
    """Whether none of these rows of this layer's MLP output can reach the embedding.

    This holds for patch and register rows at the last layer of a model that pools the class token
    (`vit.cfg.pools_cls`): no attention follows, and the final LayerNorm works row by row.
    """
    return tokens in ("patch", "register") and pools_cls and layer == n_layers - 1


REGION_NAMES: dict[Region, str] = {
    "all": "all rows",
    "cls": "CLS rows",
    "register": "register rows",
    "patch": "patch rows",
    "left_half": "left half",
    "right_half": "right half",
}


def region_rows(region: Region, rows: TokenRows) -> Int[Tensor, " row"]:
    """The rows of a region as indices of the token axis, ascending.

    A middle column of patches belongs to the left half, so that a grid of one column has no right
    half.

    Args:
        region: the region.
        rows: the rows of the model (`vit.cfg.rows`).

    Raises:
        InputError: an unknown region, or one that the model does not have.
    """
    check_choice("region", region, get_args(Region))
    everything = torch.arange(rows.n_tokens)
    if region != "left_half" and region != "right_half":
        return everything[token_rows(region, rows)]
    patches = everything[rows.first_patch :].view(rows.grid)
    left = -(-rows.grid[1] // 2)
    half = patches[:, :left] if region == "left_half" else patches[:, left:]
    if not half.numel():
        raise InputError(
            "region", f'is "{region}"; a grid of {rows.grid[1]} column has no such patches.'
        )
    return half.flatten()
