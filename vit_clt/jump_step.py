"""JumpReLU on the sparse back end: ragged codes of the units with a > theta - margin.

z = a 1[a > theta]. The straight-through gradient of theta needs dL/dz wherever
|a - theta| < bandwidth/2, so in training the margin is bandwidth/2 and units just below their
threshold are stored with value 0; elsewhere it is 0 and only firing units are stored. With dz_e the
gradient of entry e's value,

    da_e = dz_e where v_e != 0,    dlog_theta_i = -(theta_i^2 / bandwidth) sum over near e of dz_e.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vit_clt.codes import RaggedCodes
from vit_clt.sparse_step import encoder_gradients, pre_activation_chunks

# tokens whose density stands for a batch's
_SAMPLE = 64


@torch.no_grad()
def jump_density(
    x: Float[Tensor, "*token d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, " feature"],
    log_theta: Float[Tensor, " feature"],
    margin: float,
) -> float:
    """Share of units with a > theta - margin, on tokens evenly spaced over the batch."""
    flat = x.reshape(-1, x.shape[-1])
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    cut = log_theta.exp() - margin
    kept = sum(int((a > cut).sum()) for _, a in pre_activation_chunks(sample, weight, bias))
    return kept / max(1, len(sample) * len(weight))


def encode_jump(
    x: Float[Tensor, "*token d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, " feature"],
    log_theta: Float[Tensor, " feature"],
    *,
    bandwidth: float,
    margin: float,
) -> RaggedCodes:
    """JumpReLU codes of MLP inputs x, units with a > theta - margin stored."""
    values, indices, offsets = _EncodeJump.apply(
        x.reshape(-1, x.shape[-1]), weight, bias, log_theta, bandwidth, margin
    )
    return RaggedCodes(values, indices, offsets, tuple(x.shape[:-1]), len(weight))


class _EncodeJump(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        log_theta: Tensor,
        bandwidth: float,
        margin: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        theta = log_theta.exp()
        cut = theta - margin
        values, indices = [bias[:0]], [torch.empty(0, dtype=torch.long, device=x.device)]
        counts = [indices[0].new_zeros(1)]
        for _, a in pre_activation_chunks(x.contiguous(), weight, bias):
            kept = a > cut
            counts.append(kept.sum(1))
            position = _positions(kept)
            index = position % len(weight)
            value = a.view(-1).index_select(0, position)
            if margin > 0:
                value = value * (value > theta.index_select(0, index))
            values.append(value)
            indices.append(index)
        z, index = torch.cat(values), torch.cat(indices)
        offsets = torch.cat(counts).cumsum(0)
        ctx.mark_non_differentiable(index, offsets)
        ctx.save_for_backward(x, weight, log_theta, z, index, offsets)
        ctx.bandwidth = bandwidth
        return z, index, offsets

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, log_theta, z, index, offsets = ctx.saved_tensors
        dz = grads[0]
        found = encoder_gradients(
            x, weight, index, offsets, dz * (z != 0), ctx.needs_input_grad[:3]
        )
        d_log_theta = None
        if ctx.needs_input_grad[3]:
            theta = log_theta.exp()
            # an entry of value 0 was stored because it is near
            near = (z - theta.index_select(0, index)).abs() < ctx.bandwidth / 2
            summed = torch.bincount(index, dz * (near | (z == 0)), minlength=len(theta))
            d_log_theta = -(theta**2) / ctx.bandwidth * summed.to(theta.dtype)
        return *found, d_log_theta, None, None


def _positions(mask: Tensor) -> Tensor:
    flat = mask.view(-1)
    if flat.device.type == "cpu":
        # several times faster than torch's nonzero
        return torch.from_numpy(flat.numpy().nonzero()[0])
    return flat.nonzero()[:, 0]
