"""Codes z: what the encoders emit and the decoders read.

Two layouts with one interface. Top-k sparsifiers give `SparseCodes` (k slots a token); JumpReLU,
whose training gradient needs units that are switched off, and codes edited by hand give
`DenseCodes`. Indexing with a layer, `codes[s]`, gives that source's codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SparseCodes:
    """At most `slot` active features a token. Slots with value 0 are silent, whatever their index.

    Indices never repeat within a token. Activity is `value != 0`, never `value > 0`: Abs-TopK
    codes are signed.
    """

    values: Float[Tensor, "*layer_token slot"]
    indices: Int[Tensor, "*layer_token slot"]
    n_features: int

    def __getitem__(self, layer: int) -> SparseCodes:
        return SparseCodes(self.values[layer], self.indices[layer], self.n_features)

    def __len__(self) -> int:
        return len(self.values)

    def to_dense(self) -> Float[Tensor, "*layer_token feature"]:
        """The same codes with every feature written out; differentiable in the values."""
        dense = self.values.new_zeros(*self.values.shape[:-1], self.n_features)
        return dense.scatter(-1, self.indices, self.values)

    def l0(self) -> Int[Tensor, "*layer_token"]:
        """Active features per token."""
        return self.values.ne(0).sum(-1)

    def fired(self) -> Int[Tensor, "layer feature"]:
        """Tokens on which each feature is active, summed over every token axis."""
        active = self.values.ne(0).flatten(1).long()
        counts = active.new_zeros(len(self), self.n_features)
        return counts.scatter_add(1, self.indices.flatten(1), active)


@dataclass(frozen=True)
class DenseCodes:
    """Every feature of every token written out."""

    dense: Float[Tensor, "*layer_token feature"]

    @property
    def n_features(self) -> int:
        """Features per layer."""
        return self.dense.shape[-1]

    def __getitem__(self, layer: int) -> DenseCodes:
        return DenseCodes(self.dense[layer])

    def __len__(self) -> int:
        return len(self.dense)

    def to_dense(self) -> Float[Tensor, "*layer_token feature"]:
        """The codes themselves."""
        return self.dense

    def l0(self) -> Int[Tensor, "*layer_token"]:
        """Active features per token."""
        return self.dense.ne(0).sum(-1)

    def fired(self) -> Int[Tensor, "layer feature"]:
        """Tokens on which each feature is active, summed over every token axis."""
        n_tokens = self.dense[0, ..., 0].numel()
        return self.dense.ne(0).reshape(len(self), n_tokens, self.n_features).sum(1)


Codes = SparseCodes | DenseCodes


def stack_codes(per_layer: list[Codes]) -> Codes:
    """Codes of single layers to one object with a leading layer axis."""
    if all(isinstance(codes, SparseCodes) for codes in per_layer):
        sparse = [codes for codes in per_layer if isinstance(codes, SparseCodes)]
        return SparseCodes(
            torch.stack([codes.values for codes in sparse]),
            torch.stack([codes.indices for codes in sparse]),
            sparse[0].n_features,
        )
    return DenseCodes(torch.stack([codes.to_dense() for codes in per_layer]))
