"""The dense back end: codes written out for one source layer at a time, one matmul a source.

With W_s = [W_dec[s->s] W_dec[s->s+1] ...], targets side by side, and dY_s their gradients likewise,

    [c_{s->s} c_{s->s+1} ...] = z_s W_s,      dz_s = dY_s W_s^T,      dW_s = z_s^T dY_s:

three large products a source, sums over targets inside one of them. Backward keeps the codes as
they are and writes them and W_s out again, so no [token, feature] array outlives its layer. It
differentiates any number of times and computes in autocast's dtype where that is on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.kernels.chunks import product_dtype
from vit_clt.kernels.codes import Codes, RaggedCodes, SparseCodes


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
        chosen = range(len(tables[s]))[begin - s : first + len(start) - s]
        for l, term in enumerate(_terms(codes, tables[s], chosen), start=begin):
            outputs[l - first] = outputs[l - first] + term.view(*tokens, term.shape[-1])
    return torch.stack(outputs)


def _terms(codes: Codes, table: Tensor, targets: range) -> Sequence[Tensor]:
    if isinstance(codes, (SparseCodes, RaggedCodes)) and codes.layout == "sparse":
        return _Terms.apply(codes.values, table, codes, targets)
    return _Terms.apply(codes.to_dense(), table, None, targets)


class _Terms(torch.autograd.Function):
    """z W_j "token d_model" for several targets j.

    z is `values` itself, or `codes` with these values written out in forward and again in backward.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, table: Tensor, codes: Any, targets: range
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(values, table)
        ctx.codes = None if codes is None else replace(codes, values=values.detach())
        ctx.targets, ctx.dtype = targets, product_dtype(table)
        with torch.autocast(table.device.type, enabled=False):
            z = _written_out(values, codes, ctx.dtype)
            terms = z @ _side_by_side(table, targets, ctx.dtype)
        return tuple(terms.chunk(len(targets), 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # differentiable operations on saved tensors throughout: second derivatives follow
        values, table = ctx.saved_tensors
        d_values = d_table = None
        with torch.autocast(table.device.type, enabled=False):
            grad = torch.cat([grad.to(ctx.dtype) for grad in grads], 1)
            if ctx.needs_input_grad[0]:
                dz = grad @ _side_by_side(table, ctx.targets, ctx.dtype).T
                if ctx.codes is None:
                    d_values = dz.view(values.shape).to(values.dtype)
                else:
                    dz = dz.view(*ctx.codes.tokens, dz.shape[-1])
                    d_values = ctx.codes.read(dz).to(values.dtype)
            if ctx.needs_input_grad[1]:
                product = _written_out(values, ctx.codes, ctx.dtype).T @ grad
                found = product.unflatten(1, (len(ctx.targets), -1)).transpose(0, 1)
                d_table = _placed(found, table, ctx.targets)
        return d_values, d_table, None, None


def _written_out(
    values: Tensor, codes: SparseCodes | RaggedCodes | None, dtype: torch.dtype
) -> Float[Tensor, "token feature"]:
    # rounded before it is written out: half the memory
    z = values.to(dtype)
    dense = z if codes is None else replace(codes, values=z).to_dense()
    return dense.reshape(-1, dense.shape[-1])


def _side_by_side(
    table: Tensor, targets: range, dtype: torch.dtype
) -> Float[Tensor, "feature target_d_model"]:
    chosen = table[targets.start : targets.stop].transpose(0, 1)
    # rounded and laid out in one pass
    return chosen.to(dtype, memory_format=torch.contiguous_format).flatten(1)


def _placed(part: Tensor, like: Tensor, targets: range) -> Tensor:
    """Some targets' gradients among zeros for the others'."""
    part = part.to(like.dtype, memory_format=torch.contiguous_format)
    if len(part) == len(like):
        return part
    before = like.new_zeros(targets.start, *like.shape[1:])
    after = like.new_zeros(len(like) - targets.stop, *like.shape[1:])
    return torch.cat([before, part, after])
