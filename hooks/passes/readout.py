"""A linear readout of a frozen pass: where it reads the stream, and the terms that sum to it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vit_clt.choices import Norms


@dataclass(frozen=True)
class Reader:
    """A linear readout of the frozen stream, at the place where it reads the stream."""

    stream: Float[Tensor, "*direction batch token d_model"]
    """Gradient with respect to the stream there, through the norm that is read."""
    n_attentions: int
    """How many attention layers come before it."""
    n_mlps: int
    """How many MLPs come before it."""
    bias: Float[Tensor, "*direction batch"]
    """The term of the bias of the norm that is read."""
    norms: Norms
    """Whether norms are held or differentiated."""


@dataclass(frozen=True)
class Readout:
    """The terms of a linear readout of the frozen stream. They sum to the readout, which is

    sum_l <y, y_l> + <inputs, patches + class token + position> + the three biases
    """

    y: Float[Tensor, "*direction layer batch token d_model"]
    """Gradient with respect to y_l (before LayerScale), for the layers below the readout."""
    inputs: Float[Tensor, "*direction batch token d_model"]
    """Gradient with respect to the input of ln_pre, which on each row is the sum of its patch (or
    the class token) and its position."""
    ln_pre_bias: Float[Tensor, "*direction batch"]
    """The term of the bias of ln_pre."""
    attention_bias: Float[Tensor, "*direction attention batch"]
    """The terms of the biases of ln_1, the values and out_proj, for each block whose attention
    comes before the readout."""
    reader_bias: Float[Tensor, "*direction batch"]
    """The terms of the biases of the LayerNorms that are read: ln_post, or ln_2 for a row of x_l,
    and with `through` the ln_2 of all layers."""
