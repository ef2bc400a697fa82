"""On how many CLS rows, other rows and images each feature of a layer is active (z != 0)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.features.active import ActiveCodes

CLS, PATCH = 0, 1
"""The kinds of token rows, as the first axis of counts."""


class FeatureCounts:
    """Gathered batch by batch, for the gallery and for steering alike.

    Args:
        n_features: F.
        cls_at: place of the class token among an image's rows, None where it is not among them.
    """

    rows: Int[Tensor, "kind feature"]
    images: Int[Tensor, " feature"]
    """Images with one active row or more."""

    def __init__(self, n_features: int, cls_at: int | None):
        self.cls_at = cls_at
        self.rows = torch.zeros(2, n_features, dtype=torch.int64)
        self.images = torch.zeros(n_features, dtype=torch.int64)

    def kinds(self, active: ActiveCodes) -> Int[Tensor, " entry"]:
        """Whether each active entry lies on a CLS row (0) or another one (1)."""
        if self.cls_at is None:
            return torch.full_like(active.features, PATCH)
        return (active.tokens != self.cls_at).long()

    def add(self, active: ActiveCodes, of_images: Float[Tensor, "image feature"]) -> None:
        """A batch's active entries, and `active.of_images()`."""
        at = self.kinds(active) * active.n_features + active.features
        self.rows += torch.bincount(at, minlength=self.rows.numel()).cpu().view(2, -1)
        self.images += (of_images != 0).sum(0).cpu()
