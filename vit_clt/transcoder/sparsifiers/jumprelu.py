"""JumpReLU: thresholds learned per feature, sparsity by a penalty whose weight may be steered.

The loss has lambda times the mean over tokens of sum_s sum_i tanh(c ||W_dec,i|| z_i), where
||W_dec,i|| runs over all targets of feature i together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_clt.choices import Backend
from vit_clt.errors import InputError
from vit_clt.kernels.choose import choose, choose_jump
from vit_clt.kernels.codes import Codes, DenseCodes
from vit_clt.kernels.jump import (
    Near,
    encode_jump,
    jump,
    jump_densities,
    jump_gradients,
    tanh_sum,
    tanh_sum_gradients,
)
from vit_clt.transcoder.sparsifier_options import JumpReLUSettings, JumpReLUTraining
from vit_clt.transcoder.sparsifiers.base import Encoder, Schedule, Sparsifier
from vit_clt.transcoder.train_config import SparsifierSettings, SparsifierTraining

if TYPE_CHECKING:
    from vit_clt.transcoder.model import CrossLayerTranscoder


class LambdaSchedule(Schedule):
    """lambda of the tanh penalty: a ramp from 0, or steered to an L0 target."""

    def __init__(self, sparsifier: JumpReLU, options: JumpReLUTraining, total: int):
        super().__init__(sparsifier)
        self.options = options
        self.ramp = max(1.0, options.sparsity_ramp * total)
        self.steered = options.l0 is not None
        self.log_gain = 0.0

    def weight(self, step: int) -> float:
        """lambda of this step."""
        if self.steered:
            return self.options.sparsity * exp(self.log_gain)
        return self.options.sparsity * min(1.0, step / self.ramp)

    def advance(self, l0: float | None) -> None:
        """Integral control of log lambda: it grows while too many features are active."""
        if self.options.l0 is not None and l0 is not None:
            error = log(max(l0, 1e-3) / self.options.l0)
            gain = self.log_gain + 0.05 * max(-1.0, min(1.0, error))
            # a target that cannot be reached must not end in an overflow
            self.log_gain = max(-50.0, min(50.0, gain))

    def state(self) -> dict[str, float]:
        """log of how far lambda has been steered from its start."""
        return {"log_gain": self.log_gain}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` gave."""
        self.log_gain = state["log_gain"]


@dataclass(frozen=True)
class JumpReLU(Sparsifier[JumpReLUTraining]):
    """z = a * 1[a > theta], theta = exp(log_theta) learned per feature.

    Gradients (Rajamanoharan et al. 2024): to a only where a > theta; straight-through to theta,
    dL/dlog_theta = -(theta^2 / bandwidth) * sum over tokens of 1[|a - theta| < bandwidth/2] dL/dz.
    """

    theta: float | int = 0.03
    """Initial threshold, in units of the (normalised) pre-activation."""
    bandwidth: float | int = JumpReLUSettings.bandwidth
    """Width eps of the rectangle that stands in for the jump's derivative."""
    name: ClassVar[str] = "jumprelu"
    label: ClassVar[str] = "JumpReLU"
    penalised: ClassVar[bool] = True
    settings: ClassVar[type[SparsifierSettings]] = JumpReLUSettings
    training: ClassVar[type[SparsifierTraining]] = JumpReLUTraining

    def __post_init__(self) -> None:
        for field in ("theta", "bandwidth"):
            value = getattr(self, field)
            if not value > 0:
                raise InputError(field, f"is {value}; expected a value above 0.")

    def __call__(
        self, a: Float[Tensor, "*token feature"], log_theta: Float[Tensor, " feature"] | None = None
    ) -> Codes:
        """Codes of pre-activations `a` at thresholds exp(log_theta)."""
        assert log_theta is not None, "JumpReLU needs log_theta"
        return DenseCodes(_Jump.apply(a, log_theta, self.bandwidth))

    def encode(self, layers: Sequence[Encoder], backend: Backend) -> list[Codes]:
        """Codes on the back end that the shares of firing and of nearly firing units ask for."""
        first = layers[0]
        (n_features, d_model), like = first.weight.shape, first.bias
        if choose(backend, n_features, d_model, 0.0, like) == "dense":
            # dense at any density: a GPU need not be waited for to measure it
            return super().encode(layers, backend)
        weights = [(*layer[:3], layer.own["log_theta"]) for layer in layers]
        # one choice for all layers, so that their codes stack
        densities = [jump_densities(*each, self.bandwidth) for each in weights]
        firing, near = (sum(shares) / len(weights) for shares in zip(*densities, strict=True))
        # the threshold's gradient needs units just below it; without gradients only firing ones
        if torch.is_grad_enabled() and first.own["log_theta"].requires_grad:
            choice = choose_jump(backend, n_features, d_model, firing, near, like)
            kept: Near | None = {"dense": None, "banded": "masked", "sparse": "listed"}[choice]
        else:
            choice = choose(backend, n_features, d_model, firing, like)
            kept = "dropped" if choice == "sparse" else None
        if kept is None:
            return super().encode(layers, backend)
        return [encode_jump(*each, self.bandwidth, kept) for each in weights]

    def tensors(self, n_layers: int, n_features: int) -> dict[str, Tensor]:
        """log_theta "layer feature", a parameter."""
        theta = torch.tensor(self.theta)
        return {"log_theta": nn.Parameter(theta.log().expand(n_layers, n_features).clone())}

    def n_parameters(self, n_layers: int, n_features: int) -> int:
        """L F."""
        return n_layers * n_features

    def thresholds(
        self, own: Mapping[str, Tensor], n_features: int
    ) -> Float[Tensor, "layer feature"]:
        """exp(log_theta)."""
        return own["log_theta"].exp()

    def check(self, options: JumpReLUTraining, n_features: int) -> None:
        """The L0 that lambda is steered to is at most n_features."""
        if options.l0 is not None and options.l0 > n_features:
            raise InputError("l0", f"is {options.l0}; expected at most n_features, {n_features}.")

    def schedule(self, options: JumpReLUTraining, total: int) -> Schedule:
        """lambda by its ramp or steered to `l0`."""
        return LambdaSchedule(self, options, total)

    def penalty(
        self, clt: CrossLayerTranscoder, codes: Codes, options: JumpReLUTraining
    ) -> Float[Tensor, ""]:
        """`tanh_penalty` at c."""
        return tanh_penalty(clt, codes, options.sparsity_scale)


def tanh_penalty(clt: CrossLayerTranscoder, codes: Codes, scale: float | int) -> Float[Tensor, ""]:
    """Sum over tokens, layers and features of tanh(scale ||W_dec,i|| z_i)."""
    total = clt.b_dec.new_zeros(())
    norms = clt.decoder_norms()
    for s in range(len(codes)):
        each = codes[s]
        if each.layout == "dense":
            total = total + _TanhSum.apply(each.to_dense(), norms[s], scale)
            continue
        # units neither stored nor in the band are 0, and owe the threshold no gradient
        entries = each.entries()
        norm = norms[s].index_select(0, entries.indices)
        total = total + torch.tanh(scale * norm * entries.values).sum()
        if entries.band is not None:
            at_rest = torch.tanh(scale * norms[s] * entries.band.shift)
            total = total + (entries.band.counts() * at_rest).sum()
    return total


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


class _TanhSum(torch.autograd.Function):
    """`tanh_sum`, which keeps no [token, feature] array but z for backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, norm: Tensor, scale: float | int) -> Tensor:
        ctx.save_for_backward(z, norm)
        ctx.scale = scale
        return tanh_sum(z, norm, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        z, norm = ctx.saved_tensors
        return *tanh_sum_gradients(grads[0], z, norm, ctx.scale), None
