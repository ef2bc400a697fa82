"""Sparse codes of one source layer as bags, and the three products a step needs of them.

An entry e is one (token t_e, feature i_e, value v_e). Kept in token order (CSR) the entries of a
token are a bag; sorted by feature (CSC) those of a feature are. Both are sums of rows of a table,

    y_t  = sum over e of token t   of v_e W[i_e]        decoding, table W
    dW_i = sum over e of feature i of v_e dy[t_e]       weight gradients, table dy

and the value gradient is one dot product per entry, dv_e = <dy[t_e], W[i_e]>. No atomics, no
scatter: the same bits in every run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class FeatureOrder:
    """Entries sorted by feature, tokens ascending within one."""

    entries: Int[Tensor, " entry"]
    """Position of each sorted entry in token order."""
    tokens: Int[Tensor, " entry"]
    offsets: Int[Tensor, " feature_and_one"]

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
    counts = torch.bincount(indices, minlength=n_features)
    starts = counts.new_zeros(n_features + 1)
    torch.cumsum(counts, 0, out=starts[1:])
    return FeatureOrder(entries, of_token.index_select(0, entries), starts)


def bag_sums(
    table: Float[Tensor, "row d_model"],
    rows: Int[Tensor, " entry"],
    offsets: Int[Tensor, " bag_and_one"],
    values: Float[Tensor, " entry"],
) -> Float[Tensor, "bag d_model"]:
    """out_b = sum over entries e of bag b of values_e table[rows_e]."""
    return embedding_bag(
        rows, table, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def feature_sums(
    tables: Float[Tensor, "target token d_model"],
    order: FeatureOrder,
    values: Float[Tensor, " entry"],
) -> Float[Tensor, "target feature d_model"]:
    """out[j, i] = sum over entries e of feature i of values_e tables[j, t_e]; `values` sorted.

    All targets in one call, (target, feature) as bags: the result is written once, where it stays.
    """
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


def entry_dots(
    grads: Float[Tensor, "target token d_model"],
    tables: Float[Tensor, "target feature d_model"],
    order: FeatureOrder,
) -> Float[Tensor, " entry"]:
    """dv_e = sum over targets j of <grads[j, t_e], tables[j, i_e]>, entries sorted by feature.

    Feature by feature the large table is read once, in order; only rows of `grads` are gathered.
    """
    _silence_beta_warning()
    n_features, n_tokens = tables.shape[1], grads.shape[1]
    dots = grads.new_zeros(len(order.entries))
    if len(dots) == 0:
        return dots
    pattern = torch.sparse_csr_tensor(
        order.offsets, order.tokens, dots, (n_features, n_tokens), check_invariants=False
    )
    for grad, table in zip(grads, tables, strict=True):
        torch.sparse.sampled_addmm(pattern, table, grad.T, beta=1.0, out=pattern)
    return pattern.values()


@cache
def _silence_beta_warning() -> None:
    # torch warns once a process that CSR tensors are in beta
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.eye(1).to_sparse_csr()
