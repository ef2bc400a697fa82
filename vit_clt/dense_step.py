"""The dense back end: codes written out for one source layer at a time, then plain matmuls.

It differentiates any number of times and autocast applies as usual. Backward keeps the codes as
they are and writes them out again, so no [token, feature] array outlives its layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.codes import Codes, DenseCodes, RaggedCodes


def decode_dense(
    sources: Mapping[int, Codes],
    tables: Sequence[Float[Tensor, "_ feature d_model"]],
    start: Float[Tensor, "target *#token d_model"],
    first: int = 0,
) -> Float[Tensor, "target *token d_model"]:
    """Targets l = first, first + 1, ...: start[l - first] + sum over `sources` s <= l of c_{s->l}.

    Args:
        sources: codes by source layer, at least one, each writing to one of the targets.
        tables: W_dec of every layer; that of s has targets s, s + 1, ... as far as it goes.
        start: what the terms are added to; token axes of length 1 broadcast.
        first: the first target.
    """
    tokens = next(iter(sources.values())).tokens
    outputs: list[Tensor] = list(start.expand(len(start), *tokens, start.shape[-1]))
    for s, codes in sources.items():
        begin = max(s, first)
        terms = _terms(codes, tables[s], slice(begin - s, first + len(start) - s))
        for l, term in enumerate(terms, start=begin):
            outputs[l - first] = outputs[l - first] + term
    return torch.stack(outputs)


def _terms(codes: Codes, table: Tensor, targets: slice) -> Sequence[Tensor]:
    if isinstance(codes, DenseCodes) or (isinstance(codes, RaggedCodes) and codes.band is not None):
        # unbound before it is sliced: a slice's gradient would be a second copy of the table's
        z = codes.to_dense()
        return [z @ block for block in table.unbind(0)[targets]]
    return _WrittenOut.apply(codes.values, table, codes, targets)


class _WrittenOut(torch.autograd.Function):
    """z W_j for several targets j; z is formed in forward and again in backward."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, table: Tensor, codes: Any, targets: slice
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(values, table)
        ctx.codes = replace(codes, values=values.detach())
        ctx.targets = targets
        device = table.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        z = codes.to_dense()
        return tuple(z @ block for block in table[targets].unbind(0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # differentiable operations on saved tensors throughout: second derivatives follow
        values, table = ctx.saved_tensors
        codes, targets = replace(ctx.codes, values=values), ctx.targets
        d_values = d_table = None
        with torch.autocast(**ctx.autocast):
            if ctx.needs_input_grad[0]:
                blocks = table[targets].unbind(0)
                dz = sum(grad @ block.T for grad, block in zip(grads, blocks, strict=True))
                assert isinstance(dz, Tensor)
                d_values = codes.read(dz.to(values.dtype))
            if ctx.needs_input_grad[1]:
                z = codes.to_dense().flatten(0, -2)
                parts: list[Tensor] = [z.T @ grad.flatten(0, -2) for grad in grads]
                chosen = range(len(table))[targets]
                before = table.new_zeros(chosen.start, *table.shape[1:])
                after = table.new_zeros(len(table) - chosen.stop, *table.shape[1:])
                d_table = torch.cat([before, *(part[None] for part in parts), after])
                d_table = d_table.to(table.dtype)
        return d_values, d_table, None, None
