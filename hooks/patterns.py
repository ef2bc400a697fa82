"""The pattern and the heads of an attention layer whose kernel never shows them.

`scaled_dot_product_attention` of torch computes softmax(q k / sqrt(d_head)) v in one kernel. Its
arguments are all that the pattern depends on, rotary positions, norms of queries and keys, and
relative positions included, so that one unfused form serves every family of ViTs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vit_clt.errors import InputError

Edit = Callable[[Tensor], Tensor]
"""A function from a tensor to one of the same shape."""


def same(tensor: Tensor) -> Tensor:
    """The tensor itself: the edit that edits nothing."""
    return tensor


def attend_unfused(
    attention: Callable[[Tensor], Tensor],
    x: Tensor,
    edit: Edit = same,
    edit_heads: Edit = same,
    seen: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """The output of an attention layer, with its pattern formed and put through `edit`.

    Args:
        attention: an attention layer that calls torch's fused kernel once.
        x: its input "batch token d_model".
        edit: a function of the pattern, "batch head query key".
        edit_heads: a function of what the heads put out, pattern times values,
            "batch head query d_head", before they are projected.
        seen: a list to which the pattern and the values "batch head key d_head" are appended.

    Raises:
        InputError: the layer calls that kernel not at all, or several times.
    """
    found: list[tuple[Tensor, Tensor]] = [] if seen is None else seen
    with _Unfused(edit, edit_heads, found):
        out = attention(x)
    if len(found) != 1:
        raise InputError(
            "model",
            f"has an attention layer with {len(found)} calls of scaled_dot_product_attention; "
            "expected one, of which the pattern can be read.",
        )
    return out


class _Unfused(TorchFunctionMode):
    """While active, torch's fused attention forms its pattern; nothing else changes."""

    def __init__(self, edit: Edit, edit_heads: Edit, seen: list[tuple[Tensor, Tensor]]):
        super().__init__()
        self.edit, self.edit_heads, self.seen = edit, edit_heads, seen

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        if is_causal:
            raise InputError("model", "has causal attention; expected a ViT, which has none.")
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            added = attn_mask.dtype != torch.bool
            scores = scores + attn_mask if added else scores.masked_fill(~attn_mask, -torch.inf)
        pattern = self.edit(torch.softmax(scores, dim=-1))
        self.seen.append((pattern, value))
        return self.edit_heads(pattern @ value)
