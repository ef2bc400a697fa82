"""Codes of one layer as a flat list of entries, and a band beside it: what the products work on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Band:
    """JumpReLU's silent units near their threshold, theta - bandwidth/2 < a <= theta, as a mask.

    Such a unit's code is `shift`, a zero whose gradient the encoder hands on to the threshold: the
    straight-through gradient asks for dL/dz there, though nothing is stored or decoded.
    """

    silent: Bool[Tensor, "*layer_token feature"]
    shift: Float[Tensor, "*layer feature"]

    def __getitem__(self, layer: int) -> Band:
        return Band(self.silent[layer], self.shift[layer])

    def between(self, first: int, stop: int) -> Band:
        """The band of features first, ..., stop - 1 alone."""
        numbers = torch.arange(self.silent.shape[-1], device=self.silent.device)
        return Band(self.silent & (numbers >= first) & (numbers < stop), self.shift)

    def to_dense(self) -> Float[Tensor, "*layer_token feature"]:
        """`shift` at every silent unit near its threshold, 0 elsewhere."""
        *layers, n_features = self.shift.shape
        token_axes = [1] * (self.silent.ndim - self.shift.ndim)
        return self.silent * self.shift.view(*layers, *token_axes, n_features)

    def counts(self) -> Int[Tensor, " feature"]:
        """Tokens on which each feature of one layer is silent and near its threshold."""
        # sums of booleans go through a copy in the sum's dtype
        return self.silent.reshape(-1, self.silent.shape[-1]).sum(0, dtype=torch.int32)


@dataclass(frozen=True)
class Entries:
    """Codes of one layer as a flat list, token after token: what the sparse products work on."""

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    offsets: Int[Tensor, " token_and_one"]
    """Where each token's entries begin, and their number."""
    band: Band | None = None
    """Units to which the products owe a gradient besides the entries, "token feature"."""

    @property
    def rows(self) -> Int[Tensor, " entry"]:
        """Token of each entry, counted through all token axes."""
        counts = self.offsets.diff()
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
