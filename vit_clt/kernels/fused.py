"""Pointwise arithmetic of JumpReLU over [token, feature] arrays, each product in one function.

Written out, such a step reads and writes these arrays many times over; on a GPU, where matmuls are
fast, that is a good part of it. Within `fusion(True)` each function here is compiled
(torch.compile) and passes over them once. The rest of a step is matmuls, which gain nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.errors import InputError

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
                f"compile is on, but torch.compile failed ({str(error).splitlines()[0]}); expected "
                "a C++ compiler (on a GPU, and Triton), or compile off."
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
