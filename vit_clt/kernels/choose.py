"""Which back end computes a step: "dense", "sparse", or "auto", a fixed function of the shape.

Dense: matmuls over all features, one source layer at a time; any device and dtype, differentiable
twice. Sparse: time and memory in proportion to active features (`vit_clt.kernels.sparse`); float32
or float64, differentiable once. JumpReLU's sparse step may be banded (`choose_jump`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vit_clt.choices import Backend

# Density up to which the sparse step wins on CPU, by bytes of one (source, target) decoder block in
# float32: small blocks pay for more calls, large ones leave the caches. Measured near the sizes of
# `make bench`; the limits of larger blocks are extrapolated, on the cautious side.
_BREAK_EVEN = ((2**20, 0.2), (2**25, 0.3))
_BREAK_EVEN_BEYOND = 0.25
# Share of silent units near their threshold up to which listing them costs less than the banded
# step's dense product on CPU: between what the sizes of `make bench` ask for.
_LISTED = 0.04


def choose(
    backend: Backend, n_features: int, d_model: int, density: float, weight: Tensor
) -> Literal["dense", "sparse"]:
    """The back end for codes that store `density` of all features, parameters being like `weight`.

    On CPU a function of its arguments alone, so that runs repeat. On other devices "auto" is dense;
    training on a GPU asks `vit_clt.training.trial` first.
    """
    if backend != "auto":
        return backend
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return "dense"
    return "sparse" if density <= break_even(n_features, d_model) else "dense"


def choose_jump(
    backend: Backend, n_features: int, d_model: int, firing: float, near: float, weight: Tensor
) -> Literal["dense", "banded", "sparse"]:
    """The back end for JumpReLU codes in training, of which theta asks for a gradient.

    Banded: sparse, but for one dense product a pair, dL/dz, which is summed over the silent units
    near their threshold under a mask. A function of its arguments alone, as `choose` is.

    Args:
        backend: what was asked for; "sparse" leaves the choice between sparse and banded.
        n_features: features per layer.
        d_model: width.
        firing: share of units with a > theta.
        near: share of units with a > theta - bandwidth/2.
        weight: a parameter.
    """
    if choose(backend, n_features, d_model, firing, weight) == "dense":
        return "dense"
    return "sparse" if near - firing <= _LISTED else "banded"


def break_even(n_features: int, d_model: int) -> float:
    """Largest share of stored features at which the sparse back end is chosen on CPU."""
    size = 4 * n_features * d_model
    for limit, density in _BREAK_EVEN:
        if size <= limit:
            return density
    return _BREAK_EVEN_BEYOND
