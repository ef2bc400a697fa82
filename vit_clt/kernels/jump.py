"""JumpReLU on the sparse back end: ragged codes of the firing units, and what theta needs beside.

z = a 1[a > theta]. The straight-through gradient of theta needs dL/dz wherever
|a - theta| < bandwidth/2, also at silent units. In training these are listed among the entries with
value 0 where they are few, and kept as a mask, a band, where they are many: there each silent near
unit's code is a zero h_i of its feature, and dL/dh_i sums dL/dz over them. With dz_e the gradient
of entry e's value,

    da_e = dz_e where v_e != 0,
    dlog_theta_i = -(theta_i^2 / bandwidth) (sum over near e of feature i of dz_e + dL/dh_i).

The pointwise arithmetic over [token, feature] arrays, on either back end, comes as four functions:
`jump`, `tanh_sum` and their gradients. Written out, they read and write these arrays many times
over; on a GPU, where matmuls are fast, that is a good part of a step. Within `fusion(True)` each is
compiled (torch.compile) and passes over them once. The rest of a step is matmuls, which gain
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from vit_clt.errors import InputError
from vit_clt.kernels.bags import feature_order, feature_totals
from vit_clt.kernels.chunks import pre_activation_chunks
from vit_clt.kernels.codes import RaggedCodes
from vit_clt.kernels.entries import Band
from vit_clt.kernels.sparse import encoder_gradients

Near = Literal["dropped", "listed", "masked"]

# tokens whose density stands for a batch's
_SAMPLE = 64


@torch.no_grad()
def jump_densities(
    x: Float[Tensor, "*token d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, " feature"],
    log_theta: Float[Tensor, " feature"],
    bandwidth: float,
) -> tuple[float, float]:
    """Shares of units with a > theta and a > theta - bandwidth/2, on evenly spaced tokens."""
    flat = x.reshape(-1, x.shape[-1])
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    theta, counts = log_theta.exp(), torch.zeros(2, dtype=torch.long, device=x.device)
    for _, a in pre_activation_chunks(sample, weight, bias):
        counts += torch.stack([(a > theta).sum(), (a > theta - bandwidth / 2).sum()])
    firing, near = counts.tolist()
    n_units = max(1, len(sample) * len(weight))
    return firing / n_units, near / n_units


def encode_jump(
    x: Float[Tensor, "*token d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, " feature"],
    log_theta: Float[Tensor, " feature"],
    bandwidth: float,
    near: Near,
) -> RaggedCodes:
    """JumpReLU codes of MLP inputs x; `near` says how silent units near theta are kept."""
    values, indices, offsets, silent, shift = _EncodeJump.apply(
        x.reshape(-1, x.shape[-1]), weight, bias, log_theta, bandwidth, near
    )
    tokens = tuple(x.shape[:-1])
    band = None if silent is None else Band(silent.view(*tokens, len(weight)), shift)
    return RaggedCodes(values, indices, offsets, tokens, len(weight), band)


class _EncodeJump(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        log_theta: Tensor,
        bandwidth: float,
        near: Near,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        theta = log_theta.exp()
        lower = theta - bandwidth / 2
        silent = shift = None
        if near == "masked":
            silent = torch.empty(len(x), len(weight), dtype=torch.bool, device=x.device)
            shift = torch.zeros_like(bias)
        values, indices = [bias[:0]], [torch.empty(0, dtype=torch.long, device=x.device)]
        counts = [indices[0].new_zeros(1)]
        for start, a in pre_activation_chunks(x.contiguous(), weight, bias):
            kept = a > (lower if near == "listed" else theta)
            if silent is not None:
                torch.logical_xor(a > lower, kept, out=silent[start : start + len(a)])
            position = positions(kept)
            counts.append(torch.bincount(position // len(weight), minlength=len(a)))
            index = position % len(weight)
            value = a.view(-1).index_select(0, position)
            if near == "listed":
                value = value * (value > theta.index_select(0, index))
            values.append(value)
            indices.append(index)
        z, index = torch.cat(values), torch.cat(indices)
        offsets = torch.cat(counts).cumsum(0)
        ctx.mark_non_differentiable(index, offsets, *([] if silent is None else [silent]))
        ctx.save_for_backward(x, weight, log_theta, z, index, offsets)
        ctx.bandwidth = bandwidth
        return z, index, offsets, silent, shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, log_theta, z, index, offsets = ctx.saved_tensors
        dz, _, _, _, d_shift = grads
        assert dz is not None
        needed = ctx.needs_input_grad[:4]
        order = feature_order(index, offsets, len(weight)) if any(needed[1:]) else None
        found = encoder_gradients(x, weight, index, offsets, order, dz * (z != 0), needed[:3])
        d_log_theta = None
        if needed[3]:
            assert order is not None
            theta = log_theta.exp()
            # an entry of value 0 was listed because it is near
            near = (z - theta.index_select(0, index)).abs() < ctx.bandwidth / 2
            summed = feature_totals(order, dz * (near | (z == 0)))
            if d_shift is not None:
                summed += d_shift
            d_log_theta = -(theta**2) / ctx.bandwidth * summed
        return *found, d_log_theta, None, None


def positions(mask: Bool[Tensor, "token feature"]) -> Int[Tensor, " entry"]:
    """Where `mask` is set, as places in the flattened array, in order."""
    flat = mask.view(-1)
    if flat.device.type == "cpu":
        # several times faster than torch's nonzero
        return torch.from_numpy(flat.numpy().nonzero()[0])
    return flat.nonzero()[:, 0]


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
# a plain global, as backward runs in threads of its own
_enabled = [False]


@contextmanager
def fusion(enabled: bool) -> Iterator[None]:
    """Compile this module's functions within, if `enabled`, each at its first use."""
    before = _enabled[0]
    _enabled[0] = enabled
    try:
        yield
    finally:
        _enabled[0] = before


def _fused(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    # importing the compiler takes seconds; symbolic shapes, as an epoch's last batch is smaller
    compiled = cache(lambda: torch.compile(function, dynamic=True))

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not _enabled[0]:
            return function(*args, **kwargs)
        try:
            return compiled()(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise InputError(
                "compile",
                f"is on, but torch.compile failed ({str(error).splitlines()[0]}); expected "
                "a C++ compiler (on a GPU, and Triton), or compile off.",
            ) from error

    return call


@_fused
def jump(
    a: Float[Tensor, "*token feature"], theta: Float[Tensor, " feature"]
) -> Float[Tensor, "*token feature"]:
    """z = a 1[a > theta]."""
    return a * (a > theta)


@_fused
def jump_gradients(
    grad: Float[Tensor, "*token feature"],
    a: Float[Tensor, "*token feature"],
    theta: Float[Tensor, " feature"],
    bandwidth: float | int,
) -> tuple[Float[Tensor, "*token feature"], Float[Tensor, " feature"]]:
    """grad 1[a > theta], and the sum over tokens of grad 1[|a - theta| < bandwidth/2]."""
    near = (a - theta).abs() < bandwidth / 2
    return grad * (a > theta), (grad * near).reshape(-1, a.shape[-1]).sum(0)


@_fused
def tanh_sum(
    z: Float[Tensor, "*token feature"], norm: Float[Tensor, " feature"], scale: float | int
) -> Float[Tensor, ""]:
    """Sum of tanh(scale norm z)."""
    return torch.tanh(scale * norm * z).sum()


@_fused
def tanh_sum_gradients(
    grad: Float[Tensor, ""],
    z: Float[Tensor, "*token feature"],
    norm: Float[Tensor, " feature"],
    scale: float | int,
) -> tuple[Float[Tensor, "*token feature"], Float[Tensor, " feature"]]:
    """Gradients with respect to z and norm, `grad` being that of `tanh_sum`."""
    slope = grad * scale * (1 - torch.tanh(scale * norm * z).square())
    return (slope * norm).to(z.dtype), (slope * z).reshape(-1, z.shape[-1]).sum(0)
