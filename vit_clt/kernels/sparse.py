"""The sparse back end: encode to top-k codes and decode them without a [token, feature] array.

Forward a_s = W_enc[s] x_s + b_enc[s] exists for one chunk of tokens at a time; backward keeps only
values and indices. With dz_e the gradient of entry e's value (notation: `vit_clt.kernels.bags`):

    dW_dec[s->l]_i = sum over e of feature i of v_e dy_l[t_e]        dz_e = sum_l <dy_l[t_e], W_i>
    dW_enc[s]_i    = sum over e of feature i of da_e x_s[t_e]        da_e = dz_e where v_e != 0
    db_enc[s]_i    = sum over e of feature i of da_e                 dx_t = sum of da_e W_enc[s]_i

Codes that carry a band (`vit_clt.kernels.codes.Band`) need dz on about every unit: it is formed
densely, a chunk of tokens at a time, and the entries' dz_e are read from it. All else stays as
above.

These functions have one derivative; for second derivatives choose the dense back end. They compute
in the parameters' dtype also under autocast, except the encoder's matmul, which follows autocast,
and on CUDA under bfloat16 autocast the decoder's rows and dy_l, which are read as bfloat16, while
sums and gradients stay float32 (`vit_clt.kernels.bags.reading_dtype`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from vit_clt.kernels.bags import (
    FeatureOrder,
    add_bag_sums_,
    bag_sums,
    feature_order,
    feature_products,
    feature_totals,
    reading_dtype,
)
from vit_clt.kernels.chunks import code_gradient_chunks, one_row_left, pre_activation_chunks
from vit_clt.kernels.entries import Entries
from vit_clt.kernels.screening import screened_top_k, screens
from vit_clt.kernels.topk import top_k


def encode_top_k(
    x: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, " feature"],
    k: int,
    *,
    signed: bool,
) -> tuple[Float[Tensor, "token slot"], Int[Tensor, "token slot"]]:
    """Values and indices of ReLU top-k codes, or with `signed` of the k largest |a|.

    Where the CPU has matrix units, those of large layers are found by `vit_clt.kernels.screening`:
    the same supports, values summed in another order, and indices that ascend.
    """
    return _EncodeTopK.apply(x, weight, bias, k, signed)


def encode_entries(
    x: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, " feature"],
    values: Float[Tensor, " entry"],
    indices: Int[Tensor, " entry"],
    offsets: Int[Tensor, " token_and_one"],
) -> Float[Tensor, " entry"]:
    """`values` with their gradients: pre-activations of x that were chosen as entries."""
    return _EncodeEntries.apply(x, weight, bias, values, indices, offsets)


def decode_entries(
    sources: Mapping[int, Entries],
    tables: Sequence[Float[Tensor, "_ feature d_model"]],
    bias: Float[Tensor, "target d_model"],
    first: int = 0,
) -> Float[Tensor, "target token d_model"]:
    """Targets l = first, first + 1, ...: bias[l - first] + sum over `sources` s <= l of c_{s->l}.

    Args:
        sources: codes by source layer, at least one.
        tables: W_dec of every layer; that of s has targets s, s + 1, ... as far as it goes.
        bias: b_dec of the targets decoded.
        first: the first of them.
    """
    layers = tuple(sources)
    entries = [sources[s] for s in layers]
    return _Decode.apply(
        (first, layers),
        bias,
        *[codes.values for codes in entries],
        *[codes.indices for codes in entries],
        *[codes.offsets for codes in entries],
        *[tables[s] for s in layers],
        *[None if codes.band is None else codes.band.silent for codes in entries],
        *[None if codes.band is None else codes.band.shift for codes in entries],
    )


class _EncodeTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, k: int, signed: bool
    ) -> tuple[Tensor, Tensor]:
        find = _screened if screens(x, weight, k) else _unscreened
        values, indices = find(x.contiguous(), weight, bias, k, signed)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(x, weight, values, indices)
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values, indices = ctx.saved_tensors
        grad = grads[0] * (values != 0)
        k = values.shape[1]
        offsets = torch.arange(0, values.numel() + 1, k, device=x.device)
        needed = ctx.needs_input_grad[:3]
        order = feature_order(indices.view(-1), offsets, len(weight)) if any(needed[1:]) else None
        found = encoder_gradients(
            x, weight, indices.view(-1), offsets, order, grad.reshape(-1), needed
        )
        return *found, None, None


def _unscreened(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, signed: bool
) -> tuple[Tensor, Tensor]:
    values = x.new_empty(len(x), k)
    indices = x.new_empty(len(x), k, dtype=torch.long)
    for start, a in pre_activation_chunks(x, weight, bias):
        top, index = top_k(a.abs() if signed else a, k)
        rows = slice(start, start + len(a))
        values[rows] = a.gather(1, index) if signed else top.relu_()
        indices[rows] = index
    return values, indices


def _screened(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, signed: bool
) -> tuple[Tensor, Tensor]:
    values, indices, success = screened_top_k(x, weight, bias, k, signed=signed)
    # rows that screening leaves open
    rest = (~success).nonzero()[:, 0]
    if len(rest):
        if one_row_left(len(rest), weight):
            # a product of one row has other bits
            rest = torch.cat((rest, rest[:1]))
        values[rest], indices[rest] = _unscreened(x[rest], weight, bias, k, signed)
    return values, indices


class _EncodeEntries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        values: Tensor,
        indices: Tensor,
        offsets: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, indices, offsets)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, indices, offsets = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        order = feature_order(indices, offsets, len(weight)) if any(needed[1:]) else None
        found = encoder_gradients(x, weight, indices, offsets, order, grads[0], needed)
        return *found, None, None, None


def encoder_gradients(
    x: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "feature d_model"],
    indices: Int[Tensor, " entry"],
    offsets: Int[Tensor, " token_and_one"],
    order: FeatureOrder | None,
    grad: Float[Tensor, " entry"],
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dW_enc and db_enc of entries' pre-activation gradients, those that are `needed`.

    `order` is the entries' `feature_order`; dx alone does without.
    """
    dx = bag_sums(weight, indices, offsets, grad) if needed[0] else None
    dw = db = None
    if order is not None and needed[1]:
        _, sums = feature_products(x[None], order, None, order.sort(grad))
        dw = None if sums is None else sums[0]
    if order is not None and needed[2]:
        db = feature_totals(order, grad)
    return dx, dw, db


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, which: tuple[int, tuple[int, ...]], bias: Tensor, *flat: Tensor | None
    ) -> Tensor:
        first, layers = which
        values, indices, offsets, tables, _, _ = _parts(flat)
        out = bias[:, None, :].repeat(1, len(offsets[0]) - 1, 1)
        dtype = reading_dtype(tables[0])
        for i, s in enumerate(layers):
            start, stop = max(s, first), min(first + len(bias), s + len(tables[i]))
            if start >= stop:
                continue
            read = tables[i][start - s : stop - s].to(dtype)
            add_bag_sums_(
                out[start - first : stop - first], read, indices[i], offsets[i], values[i]
            )
        ctx.which, ctx.dtype = which, dtype
        ctx.save_for_backward(*flat)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first, layers = ctx.which
        grad = grads[0].contiguous()
        read = grad.to(ctx.dtype)
        end = first + len(grad)
        values, indices, offsets, tables, silents, _ = _parts(ctx.saved_tensors)
        need_values, _, _, need_tables, _, need_shifts = _parts(ctx.needs_input_grad[2:])
        d_values: list[Tensor | None] = [None] * len(layers)
        d_tables: list[Tensor | None] = [None] * len(layers)
        d_shifts: list[Tensor | None] = [None] * len(layers)
        for i, s in enumerate(layers):
            start, stop = max(s, first), min(end, s + len(tables[i]))
            if start >= stop:
                continue
            here, below = slice(start - s, stop - s), slice(start - first, stop - first)
            if need_shifts[i]:
                d_values[i], d_shifts[i] = _band_gradients(
                    grad[below], tables[i][here], indices[i], offsets[i], silents[i]
                )
            need_dots = need_values[i] and d_values[i] is None
            if not (need_tables[i] or need_dots):
                continue
            order = feature_order(indices[i], offsets[i], tables[i].shape[1])
            dots, sums = feature_products(
                read[below],
                order,
                tables[i][here].to(ctx.dtype) if need_dots else None,
                order.sort(values[i]) if need_tables[i] else None,
            )
            if dots is not None:
                d_values[i] = order.unsort(dots)
            if sums is not None:
                d_tables[i] = _placed(sums, tables[i], here)
        d_bias = grad.sum(1) if ctx.needs_input_grad[1] else None
        nothing: list[Tensor | None] = [None] * len(layers)
        return (
            *(None, d_bias),
            *(*d_values, *nothing, *nothing, *d_tables),
            *(*nothing, *d_shifts),
        )


def _band_gradients(
    grads: Float[Tensor, "target token d_model"],
    tables: Float[Tensor, "target feature d_model"],
    indices: Int[Tensor, " entry"],
    offsets: Int[Tensor, " token_and_one"],
    silent: Bool[Tensor, "token feature"],
) -> tuple[Float[Tensor, " entry"], Float[Tensor, " feature"]]:
    """Gradients of the values and of the band's shift, both read from the dense dz."""
    d_values, d_shift = grads.new_empty(len(indices)), grads.new_zeros(tables.shape[1])
    bounds = offsets.cpu()  # a GPU is waited for once, not once a chunk
    for start, dz in code_gradient_chunks(grads, tables):
        lo, hi = int(bounds[start]), int(bounds[start + len(dz)])
        counts = offsets[start : start + len(dz) + 1].diff()
        rows = torch.arange(len(dz), device=dz.device)
        rows = rows.repeat_interleave(counts, output_size=hi - lo)
        d_values[lo:hi] = dz.view(-1).index_select(0, rows * dz.shape[1] + indices[lo:hi])
        d_shift += dz.mul_(silent[start : start + len(dz)]).sum(0)
    return d_values, d_shift


def _placed(part: Tensor, like: Tensor, here: slice) -> Tensor:
    if len(part) == len(like):
        return part
    whole = torch.zeros_like(like)
    whole[here] = part
    return whole


def _parts(flat: Sequence[Any]) -> tuple[Sequence[Any], ...]:
    n = len(flat) // 6
    return tuple(flat[i * n : (i + 1) * n] for i in range(6))
