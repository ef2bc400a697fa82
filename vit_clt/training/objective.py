"""The loss of a training step: reconstruction error, sparsity penalty and AuxK.

    sum over layers of sum_t w_lt ||y^_t - y_t||^2 / sum_t w_t             (w: cls_weight on CLS)
      (Matryoshka: its mean over the y^ of features below each prefix, and the whole y^)
    + lambda * mean over tokens of the sparsifier's penalty                (JumpReLU)
    + aux_weight * the same squared error of e^ against e = y - y^         (top-k, optional)

The sparsifier defines the penalty and e^ (`vit_clt.transcoder.sparsifiers`). With the Matryoshka
option (Bussmann et al. 2025) codes are chosen once, among all features; the reconstruction of a
prefix m is decoded from those of them that are of features below m, of every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.train_config import TrainConfig, used_warmup

BACKENDS = ("dense", "banded", "sparse")


class Objective(nn.Module):
    """A CLT and its loss in one forward call, which data-parallel wrappers need."""

    def __init__(self, clt: CrossLayerTranscoder, settings: TrainConfig):
        super().__init__()
        self.clt = clt
        self.options = clt.config.sparsifier.with_options(settings).sparsity
        self.prefixes = settings.matryoshka or ()

    def forward(
        self,
        x: Float[Tensor, "layer token d_model"],
        y: Float[Tensor, "layer token d_model"],
        weights: Float[Tensor, "*layer token"],
        total_weight: float,
        n_tokens: int,
        sparsity: float,
        dead: Bool[Tensor, "layer feature"] | None,
    ) -> dict[str, Tensor]:
        """The loss of these token rows, its parts, and counts of their codes.

        In training mode the codes are `encode_batch`, in evaluation mode `encode`; the two differ
        for sparsifiers that choose codes among all rows of a batch.

        Args:
            x, y: normalised MLP inputs and outputs.
            weights: the weight of each row in every layer, or in each.
            total_weight, n_tokens: sum of the weights and number of rows of the whole batch, of
                which these rows may be a part.
            sparsity: lambda, the weight of the sparsity penalty.
            dead: dead features, which rebuild the reconstruction error (AuxK); None for none.

        Returns:
            loss_by_layer "layer" (of the reconstruction, a mean over prefixes), penalty "" (times
            lambda), aux "" (times its weight), total "";
            active "layer" (number of nonzero codes, summed over rows), fired "layer feature",
            backend (the index in BACKENDS of the one used), y_hat.
        """
        sparsifier = self.clt.config.sparsifier
        codes = self.clt.encode_batch(x) if self.training else self.clt.encode(x)
        if self.training:
            sparsifier.observe_(codes, self.clt.own_tensors())
        losses = []
        for y_hat in self.clt.decode_prefixes(codes, self.prefixes, x):
            error = y_hat.float() - y
            losses.append(reconstruction_loss(error, weights, total_weight))
        loss = torch.stack(losses).mean(0)
        penalty = sparsity * sparsifier.penalty(self.clt, codes, self.options) / n_tokens
        aux = loss.new_zeros(())
        weight = self.options.auxiliary_weight
        if dead is not None and weight is not None:
            left_over = sparsifier.auxiliary_error(self.clt, x, error.detach(), dead, self.options)
            aux = weight * reconstruction_loss(left_over, weights, total_weight).sum()
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
    weights: Float[Tensor, "*layer token"],
    total_weight: float | int,
) -> Float[Tensor, " layer"]:
    """sum_t w_lt ||error_t||^2 / total_weight, per layer."""
    return (error.square().sum(-1) * weights).sum(1) / total_weight


class Activity:
    """For each feature the number of token rows since it last fired."""

    def __init__(self, shape: tuple[int, int], window: int, device: torch.device):
        self.window = window
        self.silent: Int[Tensor, "layer feature"] = torch.zeros(
            shape, dtype=torch.long, device=device
        )
        """Token rows since each feature fired."""

    def count(self, fired: Bool[Tensor, "layer feature"], n_tokens: int) -> None:
        """Add a batch of `n_tokens` rows in which these features fired."""
        self.silent += n_tokens
        self.silent[fired] = 0

    def dead(self) -> Bool[Tensor, "layer feature"]:
        """Features that have not fired for `window` rows."""
        return self.silent >= self.window


def learning_rate(settings: TrainConfig, total: int) -> Callable[[int], float]:
    """The learning rate as a function of the step: linear warm-up, then the schedule's decay.

    Args:
        settings: the settings of the run.
        total: number of steps of the run.
    """
    warmup = max(1, used_warmup(settings.warmup_steps, total))

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
