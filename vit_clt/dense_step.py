"""The dense back end: codes written out for one source layer at a time, then plain matmuls.

Autograd differentiates it any number of times and autocast applies as usual. Codes of large
batches are written out again in backward instead of being kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vit_clt.codes import Codes, DenseCodes

# below this many entries, keeping the written-out codes costs less than writing them again
_KEPT = 2**22


def decode_dense(
    sources: Mapping[int, Codes],
    tables: Sequence[Float[Tensor, "_ feature d_model"]],
    start: Float[Tensor, "target *#token d_model"],
    first: int = 0,
) -> Float[Tensor, "target *token d_model"]:
    """Targets l = first, first + 1, ...: start[l - first] + sum over `sources` s <= l of c_{s->l}.

    Args:
        sources: codes by source layer, at least one.
        tables: W_dec of every layer.
        start: what the terms are added to; token axes of length 1 broadcast.
        first: the first target.
    """
    tokens = next(iter(sources.values())).tokens
    outputs: list[Tensor] = list(start.expand(len(start), *tokens, start.shape[-1]))
    for s, codes in sources.items():
        begin = max(s, first)
        blocks = tables[s][begin - s : first + len(start) - s]
        terms = _terms(codes, blocks)
        for l, term in enumerate(terms, start=begin):
            outputs[l - first] = outputs[l - first] + term
    return torch.stack(outputs)


def _terms(codes: Codes, blocks: Tensor) -> Sequence[Tensor]:
    def terms(values: Tensor, blocks: Tensor) -> list[Tensor]:
        z = codes.to_dense()
        return [z @ block for block in blocks.unbind(0)]

    if isinstance(codes, DenseCodes):
        return terms(codes.dense, blocks)
    rewrite = torch.is_grad_enabled() and _size(codes) > _KEPT
    if rewrite:
        return checkpoint(
            terms, codes.values, blocks, use_reentrant=False, preserve_rng_state=False
        )
    return terms(codes.values, blocks)


def _size(codes: Codes) -> int:
    size = codes.n_features
    for axis in codes.tokens:
        size *= axis
    return size
