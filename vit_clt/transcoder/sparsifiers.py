"""The three sparsifiers, pre-activations a -> codes z: a frozen dataclass and equation each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.kernels.codes import Codes, DenseCodes, SparseCodes
from vit_clt.kernels.jump import jump, jump_gradients
from vit_clt.kernels.topk import top_k


@dataclass(frozen=True)
class ReLUTopK:
    """z keeps the k largest entries of ReLU(a); fewer where fewer are positive.

    Ties are broken so that at most k remain.
    """

    k: int = 128
    """Active features per token and layer, at most."""
    name: ClassVar[str] = "relu_topk"

    def __post_init__(self) -> None:
        _require_positive("ReLUTopK.k", self.k)

    def __call__(
        self, a: Float[Tensor, "*token feature"], log_theta: Float[Tensor, " feature"] | None = None
    ) -> Codes:
        """Codes of pre-activations `a`."""
        # top-k of a, then ReLU, selects what top-k of ReLU(a) does, without a second array
        indices = _largest(a, self.k)
        return SparseCodes(a.gather(-1, indices).relu(), indices, a.shape[-1])


@dataclass(frozen=True)
class AbsTopK:
    """z keeps the k entries of a with largest |a|, sign included, no ReLU (arXiv 2510.00404)."""

    k: int = 128
    """Active features per token and layer, exactly."""
    name: ClassVar[str] = "abs_topk"

    def __post_init__(self) -> None:
        _require_positive("AbsTopK.k", self.k)

    def __call__(
        self, a: Float[Tensor, "*token feature"], log_theta: Float[Tensor, " feature"] | None = None
    ) -> Codes:
        """Codes of pre-activations `a`."""
        indices = _largest(a.abs(), self.k)
        return SparseCodes(a.gather(-1, indices), indices, a.shape[-1])


@dataclass(frozen=True)
class JumpReLU:
    """z = a * 1[a > theta], theta = exp(log_theta) learned per feature.

    Gradients (Rajamanoharan et al. 2024): to a only where a > theta; straight-through to theta,
    dL/dlog_theta = -(theta^2 / bandwidth) * sum over tokens of 1[|a - theta| < bandwidth/2] dL/dz.
    """

    theta: float | int = 0.03
    """Initial threshold, in units of the (normalised) pre-activation."""
    bandwidth: float | int = 1.0
    """Width eps of the rectangle that stands in for the jump's derivative."""
    name: ClassVar[str] = "jumprelu"

    def __post_init__(self) -> None:
        _require_positive("JumpReLU.theta", self.theta)
        _require_positive("JumpReLU.bandwidth", self.bandwidth)

    def __call__(
        self, a: Float[Tensor, "*token feature"], log_theta: Float[Tensor, " feature"] | None = None
    ) -> Codes:
        """Codes of pre-activations `a` at thresholds exp(log_theta)."""
        assert log_theta is not None, "JumpReLU needs log_theta"
        return DenseCodes(_Jump.apply(a, log_theta, self.bandwidth))


Sparsifier = JumpReLU | ReLUTopK | AbsTopK
SPARSIFIERS: dict[str, type[Sparsifier]] = {s.name: s for s in (JumpReLU, ReLUTopK, AbsTopK)}


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, log_theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(a, log_theta)
        ctx.bandwidth = bandwidth
        return jump(a, log_theta.exp())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad_z,) = grads
        a, log_theta = ctx.saved_tensors
        theta = log_theta.exp()
        grad, summed = jump_gradients(grad_z, a, theta, ctx.bandwidth)
        return grad, -(theta**2) / ctx.bandwidth * summed, None


def _largest(a: Tensor, k: int) -> Tensor:
    _, indices = top_k(a.detach().reshape(-1, a.shape[-1]), k)
    return indices.view(*a.shape[:-1], k)


def _require_positive(field: str, value: float | int) -> None:
    if not value > 0:
        raise InputError(field, f"is {value}; expected a value above 0.")
