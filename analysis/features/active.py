"""The active entries of a batch's codes, as parallel lists, and their counts; active is z != 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.hooks.rows import ROW_GROUPS
from vit_clt.kernels.codes import Codes


@dataclass(frozen=True)
class ActiveCodes:
    """Active entries of one layer's codes "image token feature", token row after token row."""

    rows: Int[Tensor, " entry"]
    """Token rows counted through: image * n_tokens + token."""
    features: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]
    n_images: int
    n_tokens: int
    n_features: int

    @property
    def tokens(self) -> Int[Tensor, " entry"]:
        """Token row within its image."""
        return self.rows % self.n_tokens

    @property
    def images(self) -> Int[Tensor, " entry"]:
        """Image within the batch."""
        return self.rows // self.n_tokens

    def of_images(self) -> Float[Tensor, "image feature"]:
        """Image-level activation: the signed z of largest |z| over the image's rows, 0 if silent.

        Of a positive and a negative z of one size, the positive one.
        """
        shape = self.n_images * self.n_features
        at = self.images * self.n_features + self.features
        high = self.values.new_zeros(shape).scatter_reduce(0, at, self.values, "amax")
        low = self.values.new_zeros(shape).scatter_reduce(0, at, self.values, "amin")
        return torch.where(high >= -low, high, low).view(self.n_images, self.n_features)


def active_codes(codes: Codes) -> ActiveCodes:
    """The active entries of codes "image token feature", whatever their layout; on their device."""
    n_images, n_tokens = codes.tokens
    active = codes.active().entries()
    return ActiveCodes(
        active.rows, active.indices, active.values, n_images, n_tokens, codes.n_features
    )


CLS, PATCH = ROW_GROUPS["cls"][0], ROW_GROUPS["patch"][0]
"""The groups of token rows that are shown, as places of the first axis of counts."""
N_GROUPS = len(ROW_GROUPS["all"])


class FeatureCounts:
    """Gathered batch by batch, for the gallery and for steering alike.

    Args:
        n_features: F.
        groups: the group of every row that is counted, a number of `ROW_GROUPS`.
    """

    rows: Int[Tensor, "kind feature"]
    images: Int[Tensor, " feature"]
    """Images with one active row or more."""

    def __init__(self, n_features: int, groups: Int[Tensor, " token"]):
        self.groups = groups
        self.rows = torch.zeros(N_GROUPS, n_features, dtype=torch.int64)
        self.images = torch.zeros(n_features, dtype=torch.int64)

    def kinds(self, active: ActiveCodes) -> Int[Tensor, " entry"]:
        """The group of the row that each active entry lies on."""
        return self.groups.to(active.tokens.device)[active.tokens]

    def add(self, active: ActiveCodes, of_images: Float[Tensor, "image feature"]) -> None:
        """A batch's active entries, and `active.of_images()`."""
        at = self.kinds(active) * active.n_features + active.features
        self.rows += torch.bincount(at, minlength=self.rows.numel()).cpu().view(N_GROUPS, -1)
        self.images += (of_images != 0).sum(0).cpu()
