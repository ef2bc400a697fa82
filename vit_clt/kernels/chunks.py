"""The dense products of a sparse step, a chunk of tokens at a time, used while they are cached.

Pre-activations a = x W_enc^T + b of one source layer, and gradients of its codes,
dz = sum over targets j of dy_j W_dec[j]^T. In float32 on CPU both go through oneDNN, which reaches
twice the speed of the default matmul on some CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

# pre-activations held at a time: large enough for matmul to run at full speed, which on a GPU takes
# more of them
CHUNK_BYTES = 24 * 2**20
_GPU_CHUNK_BYTES = 256 * 2**20
# tokens whose code gradients are summed at a time on CPU: the sum is read and written once a target
_GRADIENT_ROWS = 256


def product_dtype(weight: Tensor) -> torch.dtype:
    """What matmuls with `weight` are computed in: autocast's dtype, which float64 is kept from."""
    device = weight.device.type
    if weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return weight.dtype
    return torch.get_autocast_dtype(device)


def pre_activation_chunks(
    x: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, " feature"],
) -> Iterator[tuple[int, Float[Tensor, "chunk feature"]]]:
    """a = x W^T + b, a chunk of tokens at a time, with the chunk's first token."""
    rows = _product_rows(weight)
    dtype = product_dtype(weight)
    weight = weight.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        out = (
            None
            if has_one_dnn(weight)
            else x.new_empty(min(rows, len(x)), len(weight), dtype=dtype)
        )
        for start in range(0, len(x), rows):
            part = x[start : start + rows].to(dtype)
            if out is None:
                a = one_dnn(part, weight, bias)
            else:
                a = torch.addmm(bias.to(dtype), part, weight.T, out=out[: len(part)])
            yield start, a.to(bias.dtype)


def code_gradient_chunks(
    grads: Float[Tensor, "target token d_model"],
    tables: Float[Tensor, "target feature d_model"],
) -> Iterator[tuple[int, Float[Tensor, "chunk feature"]]]:
    """dz = sum over targets of dy W^T, a chunk of tokens at a time, with the chunk's first token.

    A chunk is overwritten once the next one is asked for.
    """
    n_tokens, n_features = grads.shape[1], tables.shape[1]
    fast = has_one_dnn(tables)
    on_cpu = grads.device.type == "cpu"
    rows = _GRADIENT_ROWS if on_cpu else _fitting(_GPU_CHUNK_BYTES, tables[0])
    buffer = grads.new_empty(0 if fast else min(rows, n_tokens), n_features)
    for start in range(0, n_tokens, rows):
        parts = grads[:, start : start + rows]
        dz: Tensor | None = None
        for part, table in zip(parts, tables, strict=True):
            if not fast:
                out = buffer[: len(part)]
                dz = torch.addmm(out, part, table.T, beta=0 if dz is None else 1, out=out)
            elif dz is None:
                dz = one_dnn(part, table, None)
            else:
                dz = torch.ops.mkldnn._linear_pointwise.binary(part, dz, table, None, "add")
        assert dz is not None
        yield start, dz


def one_row_left(n_tokens: int, weight: Float[Tensor, "feature d_model"]) -> bool:
    """Whether the last of `pre_activation_chunks` is a single row."""
    return n_tokens % _product_rows(weight) == 1


def has_one_dnn(weight: Tensor) -> bool:
    """Whether products with `weight` are oneDNN's."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def one_dnn(
    x: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, " feature"] | None,
) -> Float[Tensor, "token feature"]:
    """x W^T + b by oneDNN, in the dtype of x and W, with a bias in float32."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _product_rows(weight: Tensor) -> int:
    """Tokens whose pre-activations are held at a time."""
    return _fitting(CHUNK_BYTES if weight.device.type == "cpu" else _GPU_CHUNK_BYTES, weight)


def _fitting(n_bytes: int, table: Tensor) -> int:
    """Tokens whose features take `n_bytes`."""
    return max(1, n_bytes // (table.element_size() * len(table)))
