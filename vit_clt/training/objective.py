"""What a training step minimises: reconstruction, sparsity, dead features; and its schedules.

    sum over layers of sum_t w_t ||y^_t - y_t||^2 / sum_t w_t              (w: cls_weight on CLS)
    + lambda * mean over tokens of sum_s sum_i tanh(c ||W_dec,i|| z_i)     (JumpReLU)
    + aux_weight * the same squared error of e^ against e = y - y^         (top-k, optional)

||W_dec,i|| runs over all targets of feature i together. e^_l is decoded by layer l's own decoder
from the `aux_k` largest pre-activations among its dead features (Gao et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import cos, exp, log, pi
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_clt.kernels.codes import Codes, RaggedCodes
from vit_clt.kernels.jump import tanh_sum, tanh_sum_gradients
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.sparsifiers import JumpReLU
from vit_clt.transcoder.train_config import TrainConfig

BACKENDS = ("dense", "banded", "sparse")


class Objective(nn.Module):
    """A CLT with its loss: one forward call, as data-parallel wrappers need it."""

    def __init__(self, clt: CrossLayerTranscoder, settings: TrainConfig):
        super().__init__()
        self.clt = clt
        self.settings = settings

    def forward(
        self,
        x: Float[Tensor, "layer token d_model"],
        y: Float[Tensor, "layer token d_model"],
        weights: Float[Tensor, " token"],
        total_weight: float,
        n_tokens: int,
        sparsity: float,
        dead: Bool[Tensor, "layer feature"] | None,
    ) -> dict[str, Tensor]:
        """Parts of the loss of these rows, and what is counted on them.

        Args:
            x, y: normalised MLP inputs and outputs.
            weights: of each row.
            total_weight, n_tokens: of the whole batch, of which these rows may be a part.
            sparsity: lambda.
            dead: features that rebuild what is left over; None for none.

        Returns:
            loss_by_layer "layer", penalty "" (times lambda), aux "" (times its weight), total "";
            active "layer" (nonzero codes, summed over rows), fired "layer feature", backend (of
            the step: its place in BACKENDS), y_hat.
        """
        codes = self.clt.encode(x)
        y_hat = self.clt.decode(codes)
        error = y_hat.float() - y
        loss = reconstruction_loss(error, weights, total_weight)
        penalty = sparsity * tanh_penalty(self.clt, codes, self.settings.sparsity_scale) / n_tokens
        aux = loss.new_zeros(())
        if dead is not None:
            left_over = auxiliary_error(self.clt, x, error.detach(), dead, self.settings.aux_k)
            aux = (
                self.settings.aux_weight
                * reconstruction_loss(left_over, weights, total_weight).sum()
            )
        return {
            "loss_by_layer": loss,
            "penalty": penalty,
            "aux": aux,
            "total": loss.sum() + penalty + aux,
            "active": codes.l0().sum(1).detach(),
            "fired": codes.fired() > 0,
            "backend": torch.tensor(BACKENDS.index(self.clt.backend_for(codes))),
            "y_hat": y_hat.detach(),
        }


def reconstruction_loss(
    error: Float[Tensor, "layer token d_model"],
    weights: Float[Tensor, " token"],
    total_weight: float | int,
) -> Float[Tensor, " layer"]:
    """sum_t w_t ||error_t||^2 / total_weight, per layer."""
    return (error.square().sum(-1) * weights).sum(1) / total_weight


def tanh_penalty(clt: CrossLayerTranscoder, codes: Codes, scale: float | int) -> Float[Tensor, ""]:
    """Sum over tokens, layers and features of tanh(scale ||W_dec,i|| z_i); 0 but for JumpReLU."""
    total = clt.b_dec.new_zeros(())
    if not isinstance(clt.config.sparsifier, JumpReLU):
        return total
    norms = clt.decoder_norms()
    for s in range(len(codes)):
        each = codes[s]
        if not isinstance(each, RaggedCodes):
            total = total + _TanhSum.apply(each.to_dense(), norms[s], scale)
            continue
        # units neither stored nor in the band are 0, and owe the threshold no gradient
        norm = norms[s].index_select(0, each.indices)
        total = total + torch.tanh(scale * norm * each.values).sum()
        if each.band is not None:
            at_rest = torch.tanh(scale * norms[s] * each.band.shift)
            total = total + (each.band.counts() * at_rest).sum()
    return total


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


def auxiliary_error(
    clt: CrossLayerTranscoder,
    x: Float[Tensor, "layer token d_model"],
    error: Float[Tensor, "layer token d_model"],
    dead: Bool[Tensor, "layer feature"],
    k: int,
) -> Float[Tensor, "layer token d_model"]:
    """e^ + (y^ - y): what remains of a layer's error once its dead features try to rebuild it.

    Zero for a layer without dead features.
    """
    sparsifier = clt.config.sparsifier
    assert not isinstance(sparsifier, JumpReLU)
    found = []
    for l, chosen in enumerate(dead):
        features = chosen.nonzero()[:, 0]
        if not len(features):
            found.append(torch.zeros_like(error[l]))
            continue
        # index_select: the gradient of indexing with a tensor is many times slower on CPU
        W_enc, b_enc = (v.index_select(0, features) for v in (clt.W_enc[l], clt.b_enc[l]))
        z = replace(sparsifier, k=min(k, len(features)))(nn.functional.linear(x[l], W_enc, b_enc))
        e_hat = z.to_dense() @ clt.W_dec[l][0].index_select(0, features)
        found.append(error[l] + e_hat.float())
    return torch.stack(found)


class Sparsity:
    """lambda of the tanh penalty over the run: a ramp from 0, or steered to an L0 target."""

    def __init__(self, settings: TrainConfig, total: int):
        self.settings = settings
        self.ramp = max(1.0, settings.sparsity_ramp * total)
        self.step = 0
        self.log_gain = 0.0

    @property
    def value(self) -> float:
        """lambda now."""
        if self.settings.l0 is not None:
            return self.settings.sparsity * exp(self.log_gain)
        return self.settings.sparsity * min(1.0, self.step / self.ramp)

    def steer(self, l0: float | None) -> None:
        """Go on by a step whose mean L0 was this."""
        self.step += 1
        if self.settings.l0 is not None and l0 is not None:
            # integral control of log lambda: lambda grows while too many features are active
            error = log(max(l0, 1e-3) / self.settings.l0)
            gain = self.log_gain + 0.05 * max(-1.0, min(1.0, error))
            # a target that cannot be reached must not end in an overflow
            self.log_gain = max(-50.0, min(50.0, gain))


class Activity:
    """When each feature last fired."""

    def __init__(self, shape: tuple[int, int], window: int, device: torch.device):
        self.window = window
        self.silent: Int[Tensor, "layer feature"] = torch.zeros(
            shape, dtype=torch.long, device=device
        )
        """Token rows since."""

    def count(self, fired: Bool[Tensor, "layer feature"], n_tokens: int) -> None:
        """A batch of `n_tokens` rows in which these features fired."""
        self.silent += n_tokens
        self.silent[fired] = 0

    def dead(self) -> Bool[Tensor, "layer feature"]:
        """Features silent for `window` rows."""
        return self.silent >= self.window


def learning_rate(settings: TrainConfig, total: int) -> Callable[[int], float]:
    """Step -> learning rate: linear warm-up, then the schedule's fall."""
    warmup = max(1, min(settings.warmup_steps, round(0.05 * total)))

    def at(step: int) -> float:
        rise = (step + 1) / warmup
        if settings.lr_schedule == "cosine":
            fall = 0.5 + 0.5 * cos(pi * max(0, step - warmup) / max(1, total - warmup))
        elif settings.lr_schedule == "linear":
            fall = (total - step) / max(1.0, settings.decay_fraction * total)
        else:
            fall = 1.0
        return float(settings.lr) * min(1.0, rise, max(0.0, fall))

    return at


def active_features(settings: TrainConfig, k: int, total: int) -> Callable[[int], int]:
    """Step -> k of a top-k sparsifier: from `k_start` to k in a line, then k."""
    start = k if settings.k_start is None else settings.k_start
    ramp = max(1.0, settings.k_ramp * total)
    return lambda step: round(start + (k - start) * min(1.0, step / ramp))
