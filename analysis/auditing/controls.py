"""Controls of an attribution: terms assigned to sources at random, and exact CLTs that disagree.

`ShuffledSources` makes the same reconstructions, with their terms assigned to sources at random.

`shortcut_example` makes two exact CLTs of one model whose attributions over depth are opposite. A
residual stream holds three bits a, b, c. MLP_0 writes h = a AND b; MLP_1 reads h and c and writes
h AND c. Both CLTs below rebuild both MLP outputs without error on every input:

    deep       layer 0: ab -> y_0               layer 1: (h AND c) -> y_1
    shortcut   layer 0: ab(not c) -> y_0,       layer 1: nothing
                        abc -> y_0 and y_1

The model computes y_1 from h: without MLP_0, y_1 is 0. Yet the shortcut reads all of y_1 at depth
0, C(1->1) = 0, and it is the sparser of the two, so a sparsity penalty prefers it. Neither is wrong
as a reconstruction; a heatmap alone cannot show which one the model computes.
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

    y^_l is unchanged, and with it accuracy, R^2 and replacement, but what a source contributes is
    random. A study that finds an effect in this control would find it in any CLT. The permutation
    of a row follows from the row's terms, so it is the same in every pass over the same images.
    """

    @classmethod
    def of(cls, clt: CrossLayerTranscoder) -> ShuffledSources:
        """The control of a trained CLT, with which it shares its weights."""
        shuffled = cls.__new__(cls)
        shuffled.__dict__ = {**clt.__dict__}
        return shuffled

    def contributions(
        self, codes: Codes | Sequence[Codes] | Mapping[int, Codes], target: int
    ) -> Float[Tensor, "source *token d_model"]:
        """Terms of one target, permuted over the sources in `codes`; their sum is unchanged."""
        terms = super().contributions(codes, target)
        order = _pseudorandom(terms).argsort(0)
        return terms.gather(0, order[..., None].expand_as(terms))


def _pseudorandom(terms: Float[Tensor, "source *token d_model"]) -> Float[Tensor, "source *token"]:
    # The low digits of a norm say nothing about its size; float64 keeps them.
    source = torch.arange(1, len(terms) + 1, device=terms.device, dtype=torch.float64)
    row = terms.sum(0).double().norm(dim=-1)
    mixed = torch.sin(row * 12.9898 + source.view(-1, *[1] * row.ndim) * 78.233) * 43758.5453
    return mixed - mixed.floor()


A, B, C, H, OUT = range(5)
"""Coordinates of the stream: three input bits, the output of MLP_0, and that of MLP_1."""


@dataclass(frozen=True)
class Shortcut:
    """All inputs of the example, the model's MLP inputs and outputs, and two CLTs without error."""

    x: Float[Tensor, "layer token d_model"]
    """MLP inputs: the stream (the model has no attention and no LayerNorm)."""
    y: Float[Tensor, "layer token d_model"]
    y_without_mlp_0: Float[Tensor, "token d_model"]
    """y_1 when MLP_0 writes nothing."""
    deep: CrossLayerTranscoder
    shortcut: CrossLayerTranscoder


@torch.no_grad()
def shortcut_example() -> Shortcut:
    """Build the example at the top of this module from hand-set weights, on all 8 inputs."""
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
    """The output of an MLP that writes (first AND second) to the coordinate `out`."""
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
    """Set one feature: relu(weighted coordinates + bias), decoded with 1 into each target."""
    for coordinate, weight in reads.items():
        clt.W_enc[layer][feature, coordinate] = weight
    clt.b_enc[layer, feature] = bias
    for target, coordinate in writes.items():
        clt.W_dec[layer][target - layer, feature, coordinate] = 1
