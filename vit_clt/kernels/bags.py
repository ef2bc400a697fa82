"""Sparse codes of one source layer as bags, and the three products a step needs of them.

An entry e is one (token t_e, feature i_e, value v_e). Kept in token order (CSR) the entries of a
token are a bag; sorted by feature (CSC) those of a feature are. Both are sums of rows of a table,

    y_t  = sum over e of token t   of v_e W[i_e]        decoding, table W
    dW_i = sum over e of feature i of v_e dy[t_e]       weight gradients, table dy

and the value gradient is one dot product per entry, dv_e = <dy[t_e], W[i_e]>.

CUDA tensors go to the kernels of `vit_clt.kernels.gpu`, all others, and those of a machine without
triton, to stock torch: here alone the two part. Neither sums floats by atomic adds, so a run
repeats bit by bit; stock torch on CUDA, which is slower too, does so in `feature_totals`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

# a table up to this size stays cached while its rows are gathered in any order
_CACHED_TABLE = 4 * 2**20
# rows that stay cached while a larger table is read through
_CACHED_ROWS = 512


@cache
def has_triton() -> bool:
    """Whether triton, in which the GPU's kernels are written, can be imported."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def has_kernels(table: Tensor) -> bool:
    """Whether products with `table` are the GPU kernels'."""
    return table.device.type == "cuda" and has_triton()


def reading_dtype(table: Tensor) -> torch.dtype:
    """The dtype in which a decoder's rows, and the gradients of its outputs, are to be read.

    On CUDA under bfloat16 autocast bfloat16 for float32 parameters: reading rows is what the
    kernels' time goes into, and they sum in float32. Elsewhere that of `table`.
    """
    kind = table.device.type
    if (
        has_kernels(table)
        and table.dtype == torch.float32
        and torch.is_autocast_enabled(kind)
        and torch.get_autocast_dtype(kind) == torch.bfloat16
    ):
        return torch.bfloat16
    return table.dtype


@dataclass(frozen=True)
class FeatureOrder:
    """Entries sorted by feature, tokens ascending within one."""

    features: Int[Tensor, " entry"]
    """Feature of each entry, in token order."""
    entries: Int[Tensor, " entry"]
    """Position of each sorted entry in token order."""
    tokens: Int[Tensor, " entry"]
    """Token of each sorted entry."""
    offsets: Int[Tensor, " feature_and_one"]
    """Where each feature's sorted entries begin, and their number."""

    def sort(self, values: Float[Tensor, " entry"]) -> Float[Tensor, " entry"]:
        """Per-entry values, from token order to this one."""
        return values.index_select(0, self.entries)

    def unsort(self, values: Float[Tensor, " entry"]) -> Float[Tensor, " entry"]:
        """The inverse of `sort`."""
        return torch.empty_like(values).scatter_(0, self.entries, values)


def feature_order(
    indices: Int[Tensor, " entry"], offsets: Int[Tensor, " token_and_one"], n_features: int
) -> FeatureOrder:
    """Sort entries by feature: a counting sort's result, stable, so tokens stay ascending."""
    # narrow keys sort two to three times faster
    narrow = torch.int16 if n_features < 2**15 else torch.int32
    entries = indices.to(narrow).sort(stable=True).indices
    n_tokens = len(offsets) - 1
    of_token = torch.repeat_interleave(
        torch.arange(n_tokens, device=indices.device), offsets.diff(), output_size=len(indices)
    )
    # as bincount, which would wait for a GPU; sums of integers are the same in any order
    counts = indices.new_zeros(n_features + 1)
    counts[1:].scatter_add_(0, indices, indices.new_ones(1).expand(len(indices)))
    starts = counts.cumsum(0)
    return FeatureOrder(indices, entries, of_token.index_select(0, entries), starts)


def bag_sums(
    table: Float[Tensor, "row d_model"],
    rows: Int[Tensor, " entry"],
    offsets: Int[Tensor, " bag_and_one"],
    values: Float[Tensor, " entry"],
) -> Float[Tensor, "bag d_model"]:
    """out_b = sum over entries e of bag b of values_e table[rows_e]."""
    if has_kernels(table):
        out = values.new_zeros(1, len(offsets) - 1, table.shape[1])
        add_bag_sums_(out, table[None], rows, offsets, values)
        return out[0]
    return embedding_bag(
        rows, table, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def add_bag_sums_(
    out: Float[Tensor, "target bag d_model"],
    tables: Float[Tensor, "target row d_model"],
    rows: Int[Tensor, " entry"],
    offsets: Int[Tensor, " bag_and_one"],
    values: Float[Tensor, " entry"],
) -> None:
    """out[j, b] += sum over entries e of bag b of values_e tables[j, rows_e]; `out` contiguous.

    One target at a time: its block of `tables` is contiguous and stays cached. On CUDA `tables` may
    be in bfloat16 where `out` is float32.
    """
    if has_kernels(tables):
        from vit_clt.kernels import gpu as gpu_products

        gpu_products.add_bag_sums_(out, tables, rows, offsets, values)
        return
    for each, table in zip(out, tables, strict=True):
        each += bag_sums(table, rows, offsets, values)


def feature_products(
    grads: Float[Tensor, "target token d_model"],
    order: FeatureOrder,
    tables: Float[Tensor, "target feature d_model"] | None,
    values: Float[Tensor, " entry"] | None,
) -> tuple[Float[Tensor, " entry"] | None, Float[Tensor, "target feature d_model"] | None]:
    """Both products of a decoder's backward, of entries sorted by feature.

        dv_e     = sum over j of <grads[j, t_e], tables[j, i_e]>         if `tables` are given
        dW[j, i] = sum over entries e of feature i of v_e grads[j, t_e]  if `values` are given

    On CUDA `grads` and `tables` may be in bfloat16; results are float32 or float64.
    """
    if has_kernels(grads):
        from vit_clt.kernels import gpu as gpu_products

        return gpu_products.feature_products(grads, order.tokens, order.offsets, tables, values)
    dots = None if tables is None else _entry_dots(grads, tables, order)
    return dots, None if values is None else _feature_sums(grads, order, values)


def entry_dots(
    grads: Float[Tensor, "target token d_model"],
    tables: Float[Tensor, "target feature d_model"],
    order: FeatureOrder,
) -> Float[Tensor, " entry"]:
    """dv_e of `feature_products` alone, entries sorted by feature."""
    dots, _ = feature_products(grads, order, tables, None)
    assert dots is not None
    return dots


def token_dots(
    x: Float[Tensor, "token d_model"],
    table: Float[Tensor, "feature d_model"],
    indices: Int[Tensor, " entry"],
    offsets: Int[Tensor, " token_and_one"],
) -> Float[Tensor, " entry"]:
    """<x[t_e], table[i_e]> of entries in token order, on a CPU; not differentiable.

    A sum's bits depend on its two rows alone.
    """
    if table.element_size() * table.numel() <= _CACHED_TABLE:
        return _sampled(x, table, offsets, indices)
    dots = []
    for start in range(0, len(x), _CACHED_ROWS):
        bounds = offsets[start : start + _CACHED_ROWS + 1]
        order = feature_order(indices[bounds[0] : bounds[-1]], bounds, len(table))
        part = x[start : start + _CACHED_ROWS]
        dots.append(order.unsort(_sampled(table, part, order.offsets, order.tokens)))
    return torch.cat(dots)


def entry_dots_by_token(
    grads: Float[Tensor, "*direction target token d_model"],
    tables: Float[Tensor, "target feature d_model"],
    indices: Int[Tensor, " entry"],
    offsets: Int[Tensor, " token_and_one"],
) -> Float[Tensor, "*direction entry"]:
    """dv_e of `feature_products` for many sets of gradients at once, entries in token order.

    A matrix product a token, its features' rows of `tables` with its row of every direction: they
    are read once for all directions, where `entry_dots` would read them once for each.
    """
    dots = [tables.new_zeros(*grads.shape[:-3], 0)]
    bounds = offsets.tolist()
    for t, (begin, end) in enumerate(pairwise(bounds)):
        if end > begin:
            rows = tables[:, indices[begin:end]]
            at_token = grads[..., t, :].contiguous()
            dots.append(torch.einsum("led,...ld->...e", rows, at_token))
    return torch.cat(dots, dim=-1)


def feature_totals(
    order: FeatureOrder, values: Float[Tensor, " entry"]
) -> Float[Tensor, " feature"]:
    """out_i = sum over entries e of feature i of values_e, `values` in token order."""
    if has_kernels(values):
        from vit_clt.kernels import gpu as gpu_products

        return gpu_products.segment_totals(order.offsets, order.sort(values))
    n_features = len(order.offsets) - 1
    return torch.bincount(order.features, values, minlength=n_features).to(values.dtype)


def _feature_sums(
    tables: Float[Tensor, "target token d_model"],
    order: FeatureOrder,
    values: Float[Tensor, " entry"],
) -> Float[Tensor, "target feature d_model"]:
    # all targets in one call, (target, feature) as bags: the result is written once, where it stays
    n_targets, n_tokens, d = tables.shape
    n_entries, n_features = len(values), len(order.offsets) - 1
    if n_targets == 1:
        return bag_sums(tables[0], order.tokens, order.offsets, values)[None]
    targets = torch.arange(n_targets, device=values.device)[:, None]
    rows = (order.tokens + targets * n_tokens).view(-1)
    offsets = order.offsets.new_empty(n_targets * n_features + 1)
    offsets[:-1].view(n_targets, n_features).copy_(order.offsets[:-1] + targets * n_entries)
    offsets[-1] = n_targets * n_entries
    sums = bag_sums(tables.reshape(-1, d), rows, offsets, values.repeat(n_targets))
    return sums.view(n_targets, n_features, d)


def _entry_dots(
    grads: Float[Tensor, "target token d_model"],
    tables: Float[Tensor, "target feature d_model"],
    order: FeatureOrder,
) -> Float[Tensor, " entry"]:
    # feature by feature the large table is read once, in order; only rows of `grads` are gathered
    dots = grads.new_zeros(len(order.entries))
    for grad, table in zip(grads, tables, strict=True):
        dots = _sampled(table, grad, order.offsets, order.tokens, dots)
    return dots


def _sampled(
    rows: Float[Tensor, "row d_model"],
    columns: Float[Tensor, "column d_model"],
    offsets: Int[Tensor, " row_and_one"],
    indices: Int[Tensor, " entry"],
    dots: Float[Tensor, " entry"] | None = None,
) -> Float[Tensor, " entry"]:
    """<rows[r_e], columns[indices_e]>, r_e being the row of entry e, added to `dots` if given."""
    dots = rows.new_zeros(len(indices)) if dots is None else dots
    if len(dots) == 0:
        return dots
    _silence_beta_warning()
    pattern = torch.sparse_csr_tensor(
        offsets, indices, dots, (len(rows), len(columns)), check_invariants=False
    )
    torch.sparse.sampled_addmm(pattern, rows, columns.T, beta=1.0, out=pattern)
    return pattern.values()


@cache
def _silence_beta_warning() -> None:
    # torch warns once a process that CSR tensors are in beta
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.eye(1).to_sparse_csr()
