"""What each attention head does in a frozen pass: its own term of a readout, and what it carries.

The **direct term** of head h of layer l is what its output adds to a readout through the residual
stream alone (Gandelsman et al., arXiv:2310.05916): with G the gradient at the reader,

    <G, ls1_l * W_O,h z_h>,    z_h[q] = sum over keys k of P_h[q, k] (W_V,h LN1(pre_l[k]) + b_V,h)

A logit is the sum of these terms over all heads, of out_proj's biases, of the terms of y_l on the
row that is read, and of what enters the stream there.

What a head **carries** is the part of another source's effect whose last attention step before the
reader is this head: the source reaches pre_l on any path of the frozen pass, and the head takes it
to the reader's stream, from where no attention follows. Every effect is the part through the
residual stream alone plus the parts that the heads carry, and what a head carries from all sources,
with its own biases, is its direct term (with norms held).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.choices import Norms
from vit_clt.hooks.blocks import scaled
from vit_clt.hooks.passes.frozen import FrozenPass
from vit_clt.hooks.passes.readout import Reader


@torch.no_grad()
def head_terms(frozen: FrozenPass, reader: Reader) -> Float[Tensor, "layer head *direction batch"]:
    """The direct term of every head that comes before the reader."""
    terms = [
        (attention.at_heads(reader.stream) * attention.outputs()).sum((-2, -1)).movedim(-1, 0)
        for attention in frozen.attention[: reader.n_attentions]
    ]
    return torch.stack(terms)


@torch.no_grad()
def key_terms(
    frozen: FrozenPass, reader: Reader, layer: int
) -> Float[Tensor, "head *direction batch key"]:
    """The direct terms of the heads of a layer, split exactly by the key row that they read."""
    attention = frozen.attention[layer]
    return (attention.at_values(reader.stream) * attention.values()).sum(-1).movedim(-2, 0)


@torch.no_grad()
def head_readers(frozen: FrozenPass, reader: Reader, layer: int) -> Reader:
    """Where the heads of a layer read the stream for a reader: `readout` of it is what they carry.

    Its directions have an axis of heads before those of `reader`, and its bias is the heads' own:
    that of the values and of ln_1.

    Args:
        frozen: the pass.
        reader: what reads the stream after these heads.
        layer: a layer below `reader.n_attentions`.
    """
    at_pre, bias = frozen.attention[layer].back_by_head(reader.stream, reader.norms)
    return Reader(at_pre, layer, layer, bias.sum(-1), reader.norms)


@torch.no_grad()
def head_changes(
    frozen: FrozenPass,
    inputs: Float[Tensor, "source batch token d_model"],
    y: Callable[[int], Float[Tensor, "source batch token d_model"]],
    constant: Float[Tensor, " source"],
    norms: Norms = "held",
) -> Iterator[Float[Tensor, "source batch head query d_head"]]:
    """What sources put out by every head, layer by layer from the first: the same paths forward.

    Few sources of many targets are worked out so, many sources of few targets by `head_readers`.
    The product with `HeldAttention.at_heads` of a reader's gradient is what a head carries from
    the source to the reader.

    Args:
        frozen: the pass.
        inputs: what each source puts into ln_pre.
        y: what each source puts into y_l, for a layer l.
        constant: 1 for a source that stands for all biases, 0 for the others.
        norms: whether norms are held or differentiated.
    """
    norm, at_rows = frozen.ln_pre, constant[:, None, None, None]
    stream = inputs
    if norm is not None:
        stream = norm.forward(inputs, norms) + at_rows * norm.bias
    for l, attention in enumerate(frozen.attention):
        z, out = attention.forward(stream, constant, norms)
        yield z
        stream = stream + out + scaled(y(l), frozen.vit.blocks[l].gamma2)
