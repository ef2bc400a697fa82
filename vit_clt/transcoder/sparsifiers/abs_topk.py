"""Abs-TopK: the k pre-activations of each token that are largest in magnitude, signs kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vit_clt.kernels.codes import Codes, SparseCodes
from vit_clt.transcoder.sparsifiers.topk import TopK, largest


@dataclass(frozen=True)
class AbsTopK(TopK):
    """z keeps the k entries of a with largest |a|, sign included, no ReLU (arXiv 2510.00404)."""

    name: ClassVar[str] = "abs_topk"
    label: ClassVar[str] = "Abs-TopK"
    signed: ClassVar[bool] = True

    def __call__(self, a: Float[Tensor, "*token feature"]) -> Codes:
        """Codes of pre-activations `a`: exactly k a token."""
        indices = largest(a.abs(), self.k)
        return SparseCodes(a.gather(-1, indices), indices, a.shape[-1])
