"""Exact top-k codes from bfloat16 products: most features are ruled out, the others are summed.

Pre-activations of rows rounded to bfloat16, s, cost a fraction of a = x w + b in float32 on a CPU
with matrix units (AMX), and lie within known bounds of them, `screen` and `delta` of
`vit_clt.kernels.rounding`. Three steps:

1. Screening. k entries, of different blocks, reach tau, the k-th largest of the blocks' maxima of
   s. So the k-th largest a is at least tau - screen, and no entry with s < tau - 2 screen is among
   the k; nor is one with s < -screen, if the k-th largest a is above zero. s is read in bfloat16,
   as integers.
2. The candidates that remain, about four for three wanted, are summed in float32 entry by entry.
3. These sums decide between entries that lie more than 2 delta apart. Where the k-th and the next
   do not, the entries around them are computed again by the product that the unscreened path uses,
   the bits of which do not depend on its other rows and columns.

Left to the caller are rows whose k-th entry is not surely above zero, those in which it ties with
the next, values that are not finite or very large, and rows with far too many candidates. So the
supports are those of the unscreened path, bit for bit. Values differ from its by at most 2 delta:
they are float32 sums in another order. Where calls screen, a row's codes do not depend on the rows
beside it; but whether a call screens depends on their number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_clt.kernels.bags import token_dots
from vit_clt.kernels.chunks import CHUNK_BYTES, has_one_dnn, one_dnn, one_row_left, product_dtype
from vit_clt.kernels.rounding import Bounds, Rounded
from vit_clt.kernels.rows import Array, over_rows

# Fewer tokens do not pay for rounding the weights, smaller layers and larger shares of features not
# for what follows the product.
_MIN_TOKENS = 512
_MIN_FEATURES = 3072
_MAX_SHARE = 1 / 32
# entries a block
_BLOCK = 8
# candidates a row up to which it is screened: so many times k, and some more
_CROWD = 4, 64
# entries that a product computes again, on its diagonal
_AGAIN = 64


def screens(
    x: Float[Tensor, "token d_model"], weight: Float[Tensor, "feature d_model"], k: int
) -> bool:
    """Whether top-k codes of x are found by screening: where it is exact and was faster.

    A function of the CPU, the precision and the shape alone, so that runs repeat.
    """
    n_features, d_model = weight.shape
    return (
        has_one_dnn(weight)
        and x.dtype == product_dtype(weight) == torch.float32
        and len(x) >= _MIN_TOKENS
        and n_features >= _MIN_FEATURES
        and k <= _MAX_SHARE * n_features
        and n_features % _BLOCK == 0
        # oneDNN sums a product of one row in another order
        and not one_row_left(len(x), weight)
        and _has_matrix_units()
        and _in_full_precision()
        and _repeats_bits(n_features, d_model, torch.get_num_threads())
    )


def screened_top_k(
    x: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, " feature"],
    k: int,
    *,
    signed: bool,
) -> tuple[Float[Tensor, "token slot"], Int[Tensor, "token slot"], Bool[Tensor, " token"]]:
    """The k largest a = x w + b, or with `signed` |a|, of each row: a, their indices, and success.

    Where `screens` says so. Indices ascend. Rows without success hold nothing of use.
    """
    values = x.new_empty(len(x), k)
    indices = x.new_empty(len(x), k, dtype=torch.long)
    success = torch.empty(len(x), dtype=torch.bool)
    rounded, table = Rounded.of(x), Rounded.of(weight)
    bounds = Bounds.of(rounded, table, bias)
    # oneDNN may read on into the next row and multiply by zero, which a nan would survive
    rounded.rows[~bounds.use] = 0
    size = max(2, CHUNK_BYTES // (table.rows.element_size() * len(weight)))
    for start in range(0, len(x), size):
        here = slice(start, start + size)
        part, bound = x[here], bounds[here]
        s = one_dnn(rounded.rows[here], table.rows, bias)
        found = _candidates(s.view(torch.int16).numpy(), bound, k, signed)
        offsets, features = torch.from_numpy(found.offsets), torch.from_numpy(found.features)
        a = token_dots(part, weight, features, offsets).add_(bias.index_select(0, features))

        def again(rows: Array, of: Array, part: Tensor = part) -> Array:
            tokens, features = torch.from_numpy(rows), torch.from_numpy(of)
            return _computed_again(part, weight, bias, tokens, features).numpy()

        places, decided = _decide(a.numpy(), found, bound.delta.numpy(), k, signed, again)
        kept, rows = torch.from_numpy(places), torch.from_numpy(decided).nonzero()[:, 0] + start
        values[rows] = a.index_select(0, kept).view(-1, k)
        indices[rows] = features.index_select(0, kept).view(-1, k)
        success[here] = torch.from_numpy(decided)
    return values, indices, success


@dataclass(frozen=True)
class _Candidates:
    """Features by row, one row after another; none in rows that are not screened."""

    features: Array
    offsets: Array

    @property
    def counts(self) -> Array:
        return np.diff(self.offsets)


def _candidates(bits: Array, bounds: Bounds, k: int, signed: bool) -> _Candidates:
    screen, use = bounds.screen.numpy(), bounds.use.numpy()

    def of_rows(rows: Array, here: slice) -> tuple[Array, Array]:
        return _candidates_of(rows, screen[here], use[here], k, signed)

    parts = over_rows(of_rows, bits)
    offsets = np.zeros(len(bits) + 1, np.int64)
    np.concatenate([counts for _, counts in parts]).cumsum(out=offsets[1:])
    return _Candidates(np.concatenate([features for features, _ in parts]), offsets)


def _candidates_of(
    bits: Array, screen: Array, use: Array, k: int, signed: bool
) -> tuple[Array, Array]:
    """Features that may be among a row's k largest, row after row, and their number by row.

    `bits` are s in bfloat16, read as int16: as such, numbers above zero keep their order.
    """
    n_rows, n_features = bits.shape
    if signed:
        np.bitwise_and(bits, 0x7FFF, out=bits)
    # entries g, g + G, g + 2G, ... form block g: maxima over them are maxima of whole vectors
    maxima = bits.reshape(n_rows, _BLOCK, -1).max(1)
    maxima.partition(-k, axis=1)
    tau = maxima[:, -k].astype(np.int32)
    use = use & (tau > 0)
    # what rounds to tau is no less than the middle between it and the number before it
    middle = np.where(use, (tau << 16) - 0x8000, 0).view(np.float32)
    least = np.where(use, np.maximum(middle - 2 * screen, -screen), np.float32(np.inf))
    reach = bits >= np.where(least > 0, _upper_half(least), 0).astype(np.int16)[:, None]
    below_zero = np.flatnonzero(least <= 0)
    if len(below_zero):
        # numbers below zero are ordered by size, from -0, the least integer, upwards
        last = _upper_half(least[below_zero]) + 1 - 0x8000
        reach[below_zero] |= bits[below_zero] <= last.astype(np.int16)[:, None]
    # eight entries at a time: in nearly all places there is none
    eights = reach.reshape(-1).view(np.uint64)
    places = np.flatnonzero(eights != 0)
    inside = np.flatnonzero(eights.take(places).view(np.bool_))
    features = places.take(inside >> 3) * 8 + (inside & 7)
    starts = np.arange(n_rows + 1) * n_features
    counts = np.diff(np.searchsorted(features, starts))
    features -= np.repeat(starts[:-1], counts)
    times, more = _CROWD
    use &= counts <= times * k + more
    if not use.all():
        features = features[np.repeat(use, counts)]
        counts[~use] = 0
    return features, counts


def _upper_half(a: Array) -> Array:
    """The bits of |a| in bfloat16, rounded towards zero."""
    return np.abs(a).view(np.int32) >> 16


def _decide(
    a: Array,
    found: _Candidates,
    delta: Array,
    k: int,
    signed: bool,
    again: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
    """Places of the k candidates that each decided row keeps, and which rows are decided.

    Args:
        a: of each candidate, within `delta` of its row.
        found: the candidates.
        delta: the bound by row.
        k: entries to keep.
        signed: whether |a| counts.
        again: a of entries (rows, features) as the unscreened path computes it.
    """
    counts = found.counts
    width = max(k + 1, int(counts.max()))
    starts = np.arange(len(counts)) * width
    cells = np.arange(len(a)) + np.repeat(starts - found.offsets[:-1], counts)
    sizes = np.full((len(counts), width), -np.inf, np.float32)
    sizes.reshape(-1)[cells] = np.abs(a) if signed else a
    kth, following = _kth_and_next(sizes, k)
    margin = 2 * delta
    decided = kth > margin
    kept = sizes > (following + margin)[:, None]
    near = np.flatnonzero(decided & ~(kth > following + margin))
    if len(near):
        sure = kept[near]
        unsure = (sizes[near] >= (kth - margin)[near, None]) & ~sure
        rows, slots = np.nonzero(unsure)
        exact = again(near[rows], found.features[found.offsets[near][rows] + slots])
        ranks = np.where(sure, np.float32(np.inf), np.float32(-np.inf))
        ranks[rows, slots] = np.abs(exact) if signed else exact
        kth, following = _kth_and_next(ranks, k)
        kept[near] = ranks > following[:, None]
        decided[near] = kth > following
    places = kept.reshape(-1).take(cells) & np.repeat(decided, counts)
    return np.flatnonzero(places), decided


def _kth_and_next(rows: Array, k: int) -> tuple[Array, Array]:
    ordered = np.partition(rows, -k, axis=1)
    return ordered[:, -k], ordered[:, :-k].max(1)


def _computed_again(
    x: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, features: Tensor
) -> Tensor:
    """a of entries, each from the diagonal of a product of `_AGAIN` rows and columns."""
    padding = -len(tokens) % _AGAIN
    tokens, features = (torch.cat((v, v[:1].expand(padding))) for v in (tokens, features))
    found = []
    for rows, of in zip(tokens.split(_AGAIN), features.split(_AGAIN), strict=True):
        columns = weight.index_select(0, of), bias.index_select(0, of)
        found.append(one_dnn(x.index_select(0, rows), *columns).diagonal())
    return torch.cat(found)[: len(tokens) - padding]


def _has_matrix_units() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16", False))


def _in_full_precision() -> bool:
    """Whether float32 products are float32's, which torch can be told to round."""
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None or not hasattr(settings, "fp32_precision"):
        return torch.get_float32_matmul_precision() == "highest"
    return settings.fp32_precision in ("none", "ieee")


@cache
def _repeats_bits(n_features: int, d_model: int, threads: int) -> bool:
    """Whether this machine's product is what the proof takes it for.

    It must have the same bits with all features as with a few, and be summed in float32, which
    oneDNN can be told to round also by its own environment variables.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator)
        for shape in ((2 * _AGAIN, d_model), (n_features, d_model), (n_features,))
    )
    tokens = torch.arange(len(x))
    features = torch.randint(n_features, (len(x),), generator=generator)
    whole = one_dnn(x, weight, bias)[tokens, features]
    exact = (x.double() * weight[features].double()).sum(1) + bias[features]
    delta = Bounds.of(Rounded.of(x), Rounded.of(weight), bias).delta
    again = _computed_again(x, weight, bias, tokens, features)
    return torch.equal(whole, again) and bool(((whole - exact).abs() <= delta).all())
