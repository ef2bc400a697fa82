"""Interventions on the ViT's own parts.

Token rows of what an MLP or an attention layer puts out are overwritten by zeros, means, or the
rows of other images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import get_args

from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.choices import Site, TokenKind, check_choice
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.points import SITE_OUT, FwdHooks
from vit_clt.hooks.rows import rows_at


def overwrite_mlp_hooks(
    layers: Iterable[int],
    tokens: TokenKind,
    values: Mapping[int, Float[Tensor, "*batch row d_model"]] | None = None,
) -> FwdHooks:
    """`fwd_hooks` that overwrite rows of `blocks.{l}.hook_mlp_out`.

    Args:
        layers: layers to overwrite.
        tokens: token rows to overwrite.
        values: by layer, the values to write on those rows, with or without a batch axis (a mean
            over images has none). None writes zeros.

    Raises:
        InputError: a negative layer, or, in the forward, values of another number of rows.
    """
    return _hooks("mlp", layers, tokens, values)


def overwrite_attn_hooks(
    layers: Iterable[int],
    tokens: TokenKind,
    values: Mapping[int, Float[Tensor, "*batch row d_model"]] | None = None,
) -> FwdHooks:
    """`fwd_hooks` that overwrite rows of `blocks.{l}.hook_attn_out`; see `overwrite_mlp_hooks`."""
    return _hooks("attn", layers, tokens, values)


def check_unhooked(vit: HookedViT) -> None:
    """Refuse a model with hooks attached.

    Passes that share parts of a forward call this, because hooks would fire in some forwards only.

    Raises:
        InputError: a hook is attached.
    """
    hooked = [name for name, point in vit.hook_dict.items() if point.has_hooks()]
    if hooked:
        raise InputError(
            "vit", f'has a hook at "{hooked[0]}"; expected none (vit.reset_hooks() removes them).'
        )


def overwrite_rows(
    y: Float[Tensor, "batch token d_model"],
    rows: slice,
    value: Float[Tensor, "*batch row d_model"] | None,
    name: str = "the MLP output",
) -> Float[Tensor, "batch token d_model"]:
    """A copy of `y` with these rows set to `value`, or to zero.

    Raises:
        InputError: `value` has another number of rows; the sentence calls the place `name`.
    """
    out = y.clone()
    n_rows = out[:, rows].shape[1]
    if value is not None and value.shape[-2] != n_rows:
        raise InputError(f"values have {value.shape[-2]} rows at {name}; expected {n_rows}.")
    out[:, rows] = 0 if value is None else value.to(y)
    return out


def _hooks(
    site: Site,
    layers: Iterable[int],
    tokens: TokenKind,
    values: Mapping[int, Tensor] | None,
) -> FwdHooks:
    layers = list(layers)
    if layers and min(layers) < 0:
        raise InputError("layers", f"contains {min(layers)}; expected layers counted from 0.")
    check_choice("tokens", tokens, get_args(TokenKind))
    return [
        (
            SITE_OUT[site].format(l=layer),
            partial(_overwrite, tokens=tokens, value=None if values is None else values[layer]),
        )
        for layer in layers
    ]


def _overwrite(y: Tensor, hook: HookPoint, tokens: TokenKind, value: Tensor | None) -> Tensor:
    return overwrite_rows(y, rows_at(hook, tokens), value, str(hook.name))
