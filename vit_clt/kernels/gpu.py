"""The products of `bags` as Triton kernels, for CUDA tensors; imported only when one comes.

Every gathered row is read once, nothing is written but results, no atomic adds: the same bits in
every run, and no wait for the GPU. Sums run in float32 registers (float64 where the rows are).

Bytes a step moves per token at the paper's size (L 12, d 768, F 12,288, k 128; 78 pairs of source
and target), rows read in float32, in brackets bfloat16:

    decode            78 k d rows of W_dec   30.7 MB [15.3], read-add-write of y^ 0.5 MB
    fused backward    78 k d rows of dy      30.7 MB [15.3] (for dz and dW_dec together)
    encoder gradients 12 k d rows            4.7 MB each for dW_enc and dx
    entries           index, token, value    0.1 MB for each pass over the pairs

The target is the slow axis of every grid, so the rows gathered at a time come from one block: of
W_dec 37.7 MB [18.9], of dy 3 KB [1.5] a token. Where it stays in the L2 cache, device memory sees
each block once a batch: W_dec 2.9 GB [1.5] forward, and backward as much again and dW_dec's 2.9 GB,
in all 2.2 MB [1.4] a token at 4,096 tokens; rounding W_dec for each pass adds to the latter 2.2 MB.
These are counts; no speed was measured for this file.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

# Multiply-adds that round once, as matmuls have them. Written down because triton means to change
# what it does unasked.
_FUSED = True
# Elements of a [entry, d_model] tile one thread holds, by width of the accumulator in bytes
_PER_THREAD = {4: 64, 8: 32}


class Tile(NamedTuple):
    """How one program cuts its work, from the shape alone: results must repeat."""

    columns: int
    """Power of two that holds d_model."""
    entries: int
    """Rows gathered at a time."""
    warps: int

    @classmethod
    def of(cls, d_model: int, accumulator: torch.dtype) -> Tile:
        """The tile for rows of `d_model`.

        Eight columns a thread from 256 to 4,096: loads of a row are 16 bytes wide, and a sum over
        entries stays in its thread. Entries fill the registers that leaves, short of spilling.
        """
        columns = triton.next_power_of_2(d_model)
        warps = min(16, max(1, columns // 256))
        held = max(1, columns // (32 * warps))
        return cls(columns, max(1, min(16, _PER_THREAD[accumulator.itemsize] // held)), warps)


def add_bag_sums_(
    out: Float[Tensor, "target bag d_model"],
    tables: Float[Tensor, "target row d_model"],
    rows: Int[Tensor, " entry"],
    offsets: Int[Tensor, " bag_and_one"],
    values: Float[Tensor, " entry"],
) -> None:
    """out[j, b] += sum over entries e of bag b of values_e tables[j, rows_e]; `out` contiguous."""
    assert out.is_contiguous()
    n_targets, n_bags, d = out.shape
    flat = (each.contiguous() for each in (tables, rows, offsets, values))
    _launch(
        _add_bag_sums,
        (n_bags, n_targets),
        (out, *flat, n_bags, tables.shape[1], d),
        _accumulator(tables),
    )


def feature_products(
    grads: Float[Tensor, "target token d_model"],
    tokens: Int[Tensor, " entry"],
    offsets: Int[Tensor, " feature_and_one"],
    tables: Float[Tensor, "target feature d_model"] | None,
    values: Float[Tensor, " entry"] | None,
) -> tuple[Float[Tensor, " entry"] | None, Float[Tensor, "target feature d_model"] | None]:
    """Both products of entries sorted by feature with `grads`, whose rows are read once for both.

        dots_e     = sum over j of <grads[j, t_e], tables[j, i_e]>      where `tables` are given
        sums[j, i] = sum over e of feature i of values_e grads[j, t_e]  where `values` are given

    Results are float32, float64 where `grads` are.
    """
    n_targets, n_tokens, d = grads.shape
    n_features, n_entries = len(offsets) - 1, len(tokens)
    accumulator = _accumulator(grads)
    partials = sums = None
    if tables is not None:
        # each target's share, added up afterwards in the order of targets
        partials = grads.new_empty(n_targets, n_entries, dtype=accumulator)
        tables = tables.contiguous()
    if values is not None:
        sums = grads.new_empty(n_targets, n_features, d, dtype=accumulator)
        values = values.contiguous()
    # the longest programs first, that none starts last and is waited for
    schedule = offsets.diff().argsort(descending=True)
    _launch(
        _feature_products,
        (n_features, n_targets),
        (
            *(partials, sums, grads.contiguous(), tables, schedule, tokens, offsets, values),
            *(n_tokens, n_features, n_entries, d),
        ),
        accumulator,
    )
    return None if partials is None else partials.sum(0), sums


def segment_totals(
    offsets: Int[Tensor, " segment_and_one"], values: Float[Tensor, " entry"]
) -> Float[Tensor, " segment"]:
    """Sums of consecutive values, segment i from offsets[i] to offsets[i + 1]."""
    totals = values.new_empty(len(offsets) - 1)
    accumulator = _accumulator(values)
    with torch.cuda.device_of(values):
        _segment_totals[(len(totals),)](
            totals,
            values.contiguous(),
            offsets,
            B=128,
            ACC=_TRITON[accumulator],
            num_warps=1,
            enable_fp_fusion=_FUSED,
        )
    return totals


_TRITON = {torch.float32: tl.float32, torch.float64: tl.float64}


def _accumulator(rows: Tensor) -> torch.dtype:
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _launch(
    kernel: Any, grid: tuple[int, int], arguments: tuple[Any, ...], accumulator: torch.dtype
) -> None:
    tile = Tile.of(arguments[-1], accumulator)
    # triton launches on the current device, wherever the tensors are
    with torch.cuda.device_of(arguments[2]):
        kernel[grid](
            *arguments,
            D=tile.columns,
            B=tile.entries,
            ACC=_TRITON[accumulator],
            num_warps=tile.warps,
            enable_fp_fusion=_FUSED,
        )


# triton compiles the source of these functions: nothing may wrap them, a type checker neither


@triton.jit(do_not_specialize=["n_bags", "n_rows"])
@no_type_check
def _add_bag_sums(
    out,
    tables,
    rows,
    offsets,
    values,
    n_bags,
    n_rows,
    d: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64)
    target = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, D)
    inside = columns < d
    first = tl.load(offsets + bag)
    end = tl.load(offsets + bag + 1)
    tables += target * n_rows * d
    total = tl.full((D,), 0, ACC)
    for start in range(first, end, B):
        entry = start + tl.arange(0, B)
        live = entry < end
        row = tl.load(rows + entry, mask=live, other=0).to(tl.int64)
        value = tl.load(values + entry, mask=live, other=0).to(ACC)
        gathered = tl.load(
            tables + row[:, None] * d + columns[None, :],
            mask=live[:, None] & inside[None, :],
            other=0,
        ).to(ACC)
        total += tl.sum(value[:, None] * gathered, 0)
    place = out + (target * n_bags + bag) * d + columns
    tl.store(place, tl.load(place, mask=inside, other=0).to(ACC) + total, mask=inside)


@triton.jit(do_not_specialize=["n_tokens", "n_features", "n_entries"])
@no_type_check
def _feature_products(
    dots,
    sums,
    grads,
    tables,
    schedule,
    tokens,
    offsets,
    values,
    n_tokens,
    n_features,
    n_entries,
    d: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
):
    # dots or sums may be None: triton then compiles the kernel without them
    feature = tl.load(schedule + tl.program_id(0)).to(tl.int64)
    target = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, D)
    inside = columns < d
    first = tl.load(offsets + feature)
    end = tl.load(offsets + feature + 1)
    grads += target * n_tokens * d
    place = (target * n_features + feature) * d + columns
    if dots is not None:
        dots += target * n_entries
        own = tl.load(tables + place, mask=columns < tl.where(first < end, d, 0), other=0).to(ACC)
    if sums is not None:
        total = tl.full((D,), 0, ACC)
    for start in range(first, end, B):
        entry = start + tl.arange(0, B)
        live = entry < end
        token = tl.load(tokens + entry, mask=live, other=0).to(tl.int64)
        gathered = tl.load(
            grads + token[:, None] * d + columns[None, :],
            mask=live[:, None] & inside[None, :],
            other=0,
        ).to(ACC)
        # in this order, as the compiler needs fewer registers
        if sums is not None:
            value = tl.load(values + entry, mask=live, other=0).to(ACC)
            total += tl.sum(value[:, None] * gathered, 0)
        if dots is not None:
            tl.store(dots + entry, tl.sum(gathered * own[None, :], 1), mask=live)
    if sums is not None:
        tl.store(sums + place, total, mask=inside)


@triton.jit
@no_type_check
def _segment_totals(totals, values, offsets, B: tl.constexpr, ACC: tl.constexpr):
    segment = tl.program_id(0).to(tl.int64)
    end = tl.load(offsets + segment + 1)
    total = tl.full((B,), 0, ACC)
    for start in range(tl.load(offsets + segment), end, B):
        entry = start + tl.arange(0, B)
        total += tl.load(values + entry, mask=entry < end, other=0).to(ACC)
    tl.store(totals + segment, tl.sum(total, 0))
