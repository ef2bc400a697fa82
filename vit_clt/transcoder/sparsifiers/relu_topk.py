"""ReLU-TopK: the k largest positive pre-activations of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vit_clt.kernels.codes import Codes, SparseCodes
from vit_clt.transcoder.sparsifiers.topk import TopK, largest


@dataclass(frozen=True)
class ReLUTopK(TopK):
    """z keeps the k largest entries of ReLU(a); fewer where fewer are positive.

    Ties are broken so that at most k remain.
    """

    name: ClassVar[str] = "relu_topk"
    label: ClassVar[str] = "ReLU-TopK"

    def __call__(self, a: Float[Tensor, "*token feature"]) -> Codes:
        """Codes of pre-activations `a`."""
        # top-k of a, then ReLU, selects what top-k of ReLU(a) does, without a second array
        indices = largest(a, self.k)
        return SparseCodes(a.gather(-1, indices).relu(), indices, a.shape[-1])
