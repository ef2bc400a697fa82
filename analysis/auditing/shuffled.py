"""A control: the same reconstructions, with their terms dealt to the sources by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.kernels.codes import Codes
from vit_clt.transcoder.model import CrossLayerTranscoder


class ShuffledSources(CrossLayerTranscoder):
    """A CLT whose terms c_{s->l} are permuted over s, anew for every token row.

    y^_l is unchanged, so accuracy, R^2 and replacement are; what any source is said to contribute
    is chance. Whatever a study still finds in it, it would find in anything. A row's permutation is
    decided by the row's own terms, so that it is the same in every pass over the same images.
    """

    @classmethod
    def of(cls, clt: CrossLayerTranscoder) -> ShuffledSources:
        """The control of a trained CLT; weights are shared, not copied."""
        shuffled = cls.__new__(cls)
        shuffled.__dict__ = {**clt.__dict__}
        return shuffled

    def contributions(
        self, codes: Codes | Sequence[Codes] | Mapping[int, Codes], target: int
    ) -> Float[Tensor, "source *token d_model"]:
        """Terms of one target, permuted over the sources given; their sum is unchanged."""
        terms = super().contributions(codes, target)
        order = _chance(terms).argsort(0)
        return terms.gather(0, order[..., None].expand_as(terms))


def _chance(terms: Float[Tensor, "source *token d_model"]) -> Float[Tensor, "source *token"]:
    # digits of a norm far below its size carry no trace of it; float64 leaves them to read
    source = torch.arange(1, len(terms) + 1, device=terms.device, dtype=torch.float64)
    row = terms.sum(0).double().norm(dim=-1)
    mixed = torch.sin(row * 12.9898 + source.view(-1, *[1] * row.ndim) * 78.233) * 43758.5453
    return mixed - mixed.floor()
