"""Token rows: CLS is row 0, patches follow in raster order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from vit_clt.errors import InputError

TokenKind = Literal["cls", "patch", "all"]


def token_rows(tokens: TokenKind, has_cls: bool = True) -> slice:
    """The rows of the token axis that `tokens` names.

    Raises:
        InputError: unknown kind, or "cls" on a model without a class token.
    """
    if tokens not in get_args(TokenKind):
        raise InputError(f'tokens is "{tokens}"; expected "cls", "patch" or "all".')
    if tokens == "cls" and not has_cls:
        raise InputError(
            'tokens is "cls"; this model has no class token, expected "patch" or "all".'
        )
    if tokens == "all":
        return slice(None)
    if tokens == "cls":
        return slice(0, 1)
    return slice(1 if has_cls else 0, None)


def layer_list(layers: int | Iterable[int], n_layers: int) -> list[int]:
    """Layers sorted and without repeats; negative ones count from the end.

    Raises:
        InputError: none given, or one outside the model.
    """
    wanted = [layers] if isinstance(layers, int) else list(layers)
    for layer in wanted:
        if not -n_layers <= layer < n_layers:
            raise InputError(f"layers contains {layer}; expected layers from 0 to {n_layers - 1}.")
    if not wanted:
        raise InputError(f"layers is empty; expected at least one layer from 0 to {n_layers - 1}.")
    return sorted({layer % n_layers for layer in wanted})
