"""The linear parts of a block with its clean pattern and norms held: a LayerNorm, an attention.

Each works in both directions: `back` takes the gradient of what it puts out to that of what it
reads, `forward` a change of what it reads to that of what it puts out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vit_clt.choices import Norms
from vit_clt.hooks.blocks import scaled


@dataclass(frozen=True)
class HeldNorm:
    """A LayerNorm with the 1/std of the clean pass.

    With `norms="differentiated"` both directions go through the 1/std as well.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    scale: Float[Tensor, "*row 1"]
    """1/std of every row."""
    unit: Float[Tensor, "*row d_model"]
    """(v - mean v) / std."""

    @classmethod
    def of(cls, norm: nn.LayerNorm, stream: Float[Tensor, "*row d_model"]) -> HeldNorm:
        """The norm as it is on these rows of the stream."""
        scale = torch.rsqrt(stream.var(-1, correction=0, keepdim=True) + norm.eps)
        return cls(norm.weight, norm.bias, scale, (stream - stream.mean(-1, keepdim=True)) * scale)

    @property
    def output(self) -> Float[Tensor, "*row d_model"]:
        """What the norm puts out in the clean pass."""
        return self.unit * self.gain + self.bias

    def back(
        self, gradient: Float[Tensor, "*direction_row d_model"], norms: Norms = "held"
    ) -> Float[Tensor, "*direction_row d_model"]:
        """The gradient with respect to the input, from that of the output."""
        return self._centred(gradient * self.gain, norms)

    def forward(
        self, change: Float[Tensor, "*source_row d_model"], norms: Norms = "held"
    ) -> Float[Tensor, "*source_row d_model"]:
        """The change of the output, from that of the input."""
        return self._centred(change, norms) * self.gain

    def _centred(self, rows: Tensor, norms: Norms) -> Tensor:
        # centring and scaling are their own transpose
        centred = rows - rows.mean(-1, keepdim=True)
        if norms == "differentiated":
            centred = centred - (rows * self.unit).mean(-1, keepdim=True) * self.unit
        return centred * self.scale


@dataclass(frozen=True)
class HeldAttention:
    """The attention of one block of open_clip, with its pattern and ln_1 held.

    Head h puts out z_h = P_h (W_V,h LN1(pre) + b_V,h), and the stream gets
    ls1 * (sum_h W_O,h z_h + b_O), with ls1 LayerScale where a model has one.
    """

    attn: Any
    """torch's own `MultiheadAttention`, which has the weights."""
    norm: HeldNorm
    pattern: Float[Tensor, "batch head query key"]
    gamma: Float[Tensor, " d_model"] | None
    """LayerScale."""

    def back(
        self, mid: Float[Tensor, "*direction batch token d_model"], norms: Norms = "held"
    ) -> tuple[Float[Tensor, "*direction batch token d_model"], Float[Tensor, "*direction batch"]]:
        """Through all heads: the gradient at pre from that at mid, and the term of the biases.

        The biases are those of ln_1, the values and out_proj.
        """
        at_v = rearrange(self.at_values(mid), "... head key d -> ... key (head d)")
        at_norm = at_v @ self._w_v
        bias = self.out_bias(mid) + at_v.sum(-2) @ self._b_v + at_norm.sum(-2) @ self.norm.bias
        return self.norm.back(at_norm, norms), bias

    def back_by_head(
        self, mid: Float[Tensor, "*direction batch token d_model"], norms: Norms = "held"
    ) -> tuple[
        Float[Tensor, "head *direction batch key d_model"],
        Float[Tensor, "head *direction batch key"],
    ]:
        """`back` through each head alone, whose biases are a term of every key row.

        The bias of out_proj, of no head, is left out.
        """
        at_values = self.at_values(mid).movedim(-3, 0)
        w_v = rearrange(self._w_v, "(head d) model -> head d model", head=len(at_values))
        b_v = rearrange(self._b_v, "(head d) -> head d", head=len(at_values))
        at_norm = torch.einsum("h...kd,hdm->h...km", at_values, w_v)
        bias = torch.einsum("h...kd,hd->h...k", at_values, b_v)
        return self.norm.back(at_norm, norms), bias + at_norm @ self.norm.bias

    def out_bias(
        self, mid: Float[Tensor, "*direction batch token d_model"]
    ) -> Float[Tensor, "*direction batch"]:
        """The term of the bias of out_proj, from the gradient at mid."""
        return scaled(mid, self.gamma).sum(-2) @ self.attn.out_proj.bias

    def at_heads(
        self, mid: Float[Tensor, "*direction batch token d_model"]
    ) -> Float[Tensor, "*direction batch head query d_head"]:
        """The gradient with respect to what every head puts out, from that at mid."""
        at_z = scaled(mid, self.gamma) @ self.attn.out_proj.weight
        return self._by_head(at_z)

    def at_values(
        self, mid: Float[Tensor, "*direction batch token d_model"]
    ) -> Float[Tensor, "*direction batch head key d_head"]:
        """The gradient with respect to every head's value at each key row, from that at mid."""
        # a sum over the queries that attend to the row
        return self.pattern.mT @ self.at_heads(mid)

    def outputs(self) -> Float[Tensor, "batch head query d_head"]:
        """What every head puts out in the clean pass."""
        return self.pattern @ self.values()

    def values(self) -> Float[Tensor, "batch head key d_head"]:
        """What every head reads at each key row in the clean pass, the value's bias included."""
        return self._by_head(self.norm.output @ self._w_v.T + self._b_v)

    def forward(
        self,
        pre: Float[Tensor, "*source batch token d_model"],
        constant: Float[Tensor, "*source"],
        norms: Norms = "held",
    ) -> tuple[
        Float[Tensor, "*source batch head query d_head"],
        Float[Tensor, "*source batch token d_model"],
    ]:
        """What sources put out by every head, and into the stream, from what they have at pre.

        Args:
            pre: what each source has in the stream before the block.
            constant: how many times each source has the biases: 1 for the source that stands for
                what is constant, 0 for all others.
            norms: whether the 1/std is held or differentiated.
        """
        constant = constant[..., None, None, None]
        normed = self.norm.forward(pre, norms) + constant * self.norm.bias
        z = self.pattern @ self._by_head(normed @ self._w_v.T + constant * self._b_v)
        out_proj = self.attn.out_proj
        flat = rearrange(z, "... head query d -> ... query (head d)")
        return z, scaled(flat @ out_proj.weight.T + constant * out_proj.bias, self.gamma)

    def _by_head(self, rows: Tensor) -> Tensor:
        return rearrange(rows, "... token (head d) -> ... head token d", head=self.attn.num_heads)

    @property
    def _w_v(self) -> Tensor:
        weight: Tensor = self.attn.in_proj_weight.chunk(3)[2]
        return weight

    @property
    def _b_v(self) -> Tensor:
        bias: Tensor = self.attn.in_proj_bias.chunk(3)[2]
        return bias
