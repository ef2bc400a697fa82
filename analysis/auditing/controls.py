"""What an attribution is held against: sources dealt by chance, and two exact CLTs that disagree.

`ShuffledSources` makes the same reconstructions, with their terms dealt to the sources by chance.

`shortcut_example` is two exact CLTs of one model that tell opposite stories about its depth. A
residual stream holds three bits a, b, c. MLP_0 writes h = a AND b; MLP_1 reads h and c and writes
h AND c. Both CLTs below rebuild both MLP outputs without error on every input:

    deep       layer 0: ab -> y_0               layer 1: (h AND c) -> y_1
    shortcut   layer 0: ab(not c) -> y_0,       layer 1: nothing
                        abc -> y_0 and y_1

The model computes y_1 from h: without MLP_0, y_1 is 0. Yet the shortcut says that all of y_1 is
read at depth 0, C(1->1) = 0, and it is the sparser of the two, so a sparsity penalty prefers it.
Neither is wrong as a reconstruction; a heatmap alone cannot tell which one the model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.kernels.codes import Codes
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.sparsifiers import ReLUTopK


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


A, B, C, H, OUT = range(5)
"""Coordinates of the stream: three input bits, MLP_0's output, MLP_1's output."""


@dataclass(frozen=True)
class Shortcut:
    """Every input once, the model's values, and two CLTs with zero error."""

    x: Float[Tensor, "layer token d_model"]
    """MLP inputs: the stream (the model has no attention and no LayerNorm)."""
    y: Float[Tensor, "layer token d_model"]
    y_without_mlp_0: Float[Tensor, "token d_model"]
    """y_1 when MLP_0 writes nothing."""
    deep: CrossLayerTranscoder
    shortcut: CrossLayerTranscoder


@torch.no_grad()
def shortcut_example() -> Shortcut:
    """Build it; nothing is trained."""
    stream = torch.zeros(8, 5)
    stream[:, :3] = torch.tensor(list(product([0.0, 1.0], repeat=3)))
    y_0 = _mlp(stream, A, B, H)
    y_1 = _mlp(stream + y_0, H, C, OUT)
    deep, shortcut = (CrossLayerTranscoder(CLTConfig(2, 5, 2, ReLUTopK(k=2))) for _ in range(2))
    for clt in (deep, shortcut):
        for parameter in clt.parameters():
            parameter.zero_()
    _feature(deep, 0, 0, {A: 1, B: 1}, -1, {0: H})
    _feature(deep, 1, 0, {H: 1, C: 1}, -1, {1: OUT})
    _feature(shortcut, 0, 0, {A: 1, B: 1, C: -1}, -1, {0: H})
    _feature(shortcut, 0, 1, {A: 1, B: 1, C: 1}, -2, {0: H, 1: OUT})
    return Shortcut(
        x=torch.stack([stream, stream + y_0]),
        y=torch.stack([y_0, y_1]),
        y_without_mlp_0=_mlp(stream, H, C, OUT),
        deep=deep.requires_grad_(False),
        shortcut=shortcut.requires_grad_(False),
    )


def _mlp(stream: Tensor, first: int, second: int, out: int) -> Tensor:
    """Writes first AND second."""
    y = torch.zeros_like(stream)
    y[:, out] = (stream[:, first] + stream[:, second] - 1).relu()
    return y


def _feature(
    clt: CrossLayerTranscoder,
    layer: int,
    feature: int,
    reads: dict[int, int],
    bias: int,
    writes: dict[int, int],
) -> None:
    """One unit: relu(sum of what it reads + bias), written as 1 to a coordinate of each target."""
    for coordinate, weight in reads.items():
        clt.W_enc[layer][feature, coordinate] = weight
    clt.b_enc[layer, feature] = bias
    for target, coordinate in writes.items():
        clt.W_dec[layer][target - layer, feature, coordinate] = 1
