"""Fraction of variance unexplained by layer, streamed: sum ||y - y^||^2 / sum ||y - mean||^2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

KINDS = ("all", "cls", "patch")


class VarianceSums:
    """Sums in float64 over token rows; the mean is taken over all rows of a kind."""

    def __init__(self, n_layers: int, d_model: int, device: torch.device):
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.count = zeros(2)
        self.error = zeros(2, n_layers)
        self.power = zeros(2, n_layers)
        self.total = zeros(2, n_layers, d_model)

    def add(
        self,
        y: Float[Tensor, "layer token d_model"],
        y_hat: Float[Tensor, "layer token d_model"],
        is_cls: Bool[Tensor, " token"],
    ) -> None:
        """Count these rows."""
        for i, chosen in enumerate((is_cls, ~is_cls)):
            true = y[:, chosen].double()
            self.count[i] += true.shape[1]
            self.error[i] += (true - y_hat[:, chosen].double()).square().sum((1, 2))
            self.power[i] += true.square().sum((1, 2))
            self.total[i] += true.sum(1)

    def reduce(self, over: Callable[[Tensor], Tensor]) -> None:
        """Add up what several processes counted."""
        self.count, self.error, self.power, self.total = map(
            over, (self.count, self.error, self.power, self.total)
        )

    def by_layer(self) -> dict[str, list[float] | None]:
        """FVU per layer of "all", "cls" and "patch" rows; None where they do not vary."""
        found: dict[str, list[float] | None] = {}
        for kind, chosen in zip(KINDS, (slice(None), slice(0, 1), slice(1, 2)), strict=True):
            count = float(self.count[chosen].sum())
            power, mean = self.power[chosen].sum(0), self.total[chosen].sum(0) / max(count, 1.0)
            spread = power - count * mean.square().sum(-1)
            # fewer than two rows (the end of an epoch) have no variance to explain
            varied = count > 1 and bool((spread > 1e-12 * power).all())
            found[kind] = (self.error[chosen].sum(0) / spread).tolist() if varied else None
        return found
