"""A ViT made linear around one batch, with its attention and its norms held constant.

Every attention pattern P, the 1/std of every LayerNorm (ln_pre, ln_1, ln_2, ln_post) and the norm
of the embedding are held at their values in one clean pass. The MLPs are cut: their outputs y_l
enter the stream as constants, and no gradient flows back through them. The rest is affine:

    pre_0      = LN_pre(patch, class token, + position)
    mid_l      = pre_l + ls1_l * (W_O concat_h P_l,h (W_V,h LN1_l(pre_l) + b_V,h) + b_O)
    pre_{l+1}  = mid_l + ls2_l * y_l
    x_l        = LN2_l(mid_l)
    e          = proj LN_post(pre_L[CLS])

with LN(v) = gain * (v - mean v) / std + bias at the std that is held, and ls LayerScale, where a
model has one. Any linear readout of e or of a row of x_l is then exactly a sum over y, patches and
biases. A `Readout` has its gradients, which are computed by explicit linear algebra.

A norm that is held does not take out a component that it would normalise away: a part of y along
the embedding adds to every logit, though it does not change the cosine. With
`norms="differentiated"` gradients go through the norms as well. They then give the effect of a
small change to first order (with attention held), and no longer sum to the readout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_clt.choices import Norms
from vit_clt.errors import InputError
from vit_clt.hooks.blocks import scaled
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import ATTN_IN, HOOK_IN, HOOK_OUT, RESID_MID, RESID_POST, RESID_PRE

StandIn = Callable[
    [int, Mapping[int, Float[Tensor, "*direction batch token d_model"]]],
    Float[Tensor, "*direction batch token d_model"],
]
"""The backward pass of a linear map in the place of the MLPs; see `FrozenPass.read_output`."""


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


class FrozenPass:
    """One clean pass of a batch, and linear readouts of it with attention and norms held.

    It computes in the precision of the model. Hooks attached to `vit` do not fire.

    Args:
        vit: the model.
        images: one batch of images.

    Raises:
        InputError: the model is not open_clip's own ViT, it does not pool the class token alone, or
            images of another shape.
    """

    x: Float[Tensor, "layer batch token d_model"]
    """MLP inputs x_l."""
    y: Float[Tensor, "layer batch token d_model"]
    """MLP outputs y_l, before LayerScale."""
    patches: Float[Tensor, "batch patch d_model"]
    """Outputs of the patch embedding, without positions."""
    embeddings: Float[Tensor, "batch d_embed"]
    """Image embeddings, not normalised, as those of `vit(images)`."""
    pattern: Float[Tensor, "layer batch head query key"]
    """The attention patterns, which are held."""

    @torch.no_grad()
    def __init__(self, vit: HookedViT, images: Float[Tensor, "batch 3 height width"]):
        if vit.cfg.family != "open_clip":
            raise InputError(
                "model",
                f"is {vit.cfg.model} of family {vit.cfg.family}; expected one of family open_clip.",
            )
        if not vit.cfg.pools_cls:
            raise InputError(
                "model",
                f"is {vit.cfg.model}, whose embedding is not read from the class token "
                "alone; expected one that pools CLS.",
            )
        self.vit = vit
        layers = range(vit.cfg.n_layers)
        points = (RESID_PRE, RESID_MID, ATTN_IN, HOOK_IN, HOOK_OUT)
        clean = CleanPass(vit, images, dict.fromkeys(points, layers) | {RESID_POST: layers[-1:]})
        self.embeddings = clean.embeddings
        self.x, self.y = (
            torch.stack([clean.at(point, l) for l in layers]) for point in (HOOK_IN, HOOK_OUT)
        )
        patches = self._visual.conv1(images)
        self.patches = rearrange(patches, "batch d down across -> batch (down across) d")
        blocks: list[tuple[int, Any]] = list(enumerate(vit.blocks))
        patterns = [block.pattern_and_values(clean.at(ATTN_IN, l))[0] for l, block in blocks]
        self.pattern = torch.stack(patterns)
        self._ln_1 = [_Norm.held(block.ln1, clean.at(RESID_PRE, l)) for l, block in blocks]
        self._ln_2 = [_Norm.held(block.ln2, clean.at(RESID_MID, l)) for l, block in blocks]
        self._ln_post = _Norm.held(self._visual.ln_post, clean.at(RESID_POST, layers[-1])[:, 0])
        self._ln_pre = None
        if isinstance(self._visual.ln_pre, nn.LayerNorm):
            entering = self.positions.expand(len(images), -1, -1).clone()
            entering[:, 0] += self.class_token
            entering[:, 1:] += self.patches
            self._ln_pre = _Norm.held(self._visual.ln_pre, entering)

    @property
    def _visual(self) -> Any:
        return self.vit.tower.visual

    @property
    def class_token(self) -> Float[Tensor, " d_model"]:
        """The class token that enters row 0, the same for every image."""
        return self._visual.class_embedding

    @property
    def positions(self) -> Float[Tensor, "token d_model"]:
        """The positional embedding, the same for every image."""
        return self._visual.positional_embedding

    def gradients(
        self, direction: Float[Tensor, "*direction d_embed"], norms: Norms = "held"
    ) -> Float[Tensor, "*direction layer batch token d_model"]:
        """Gradient of <e/||e||, direction> with respect to y_l, before LayerScale, of every row.

        A class logit is `zs.logit_scale * zs.weights[:, label]` (`ZeroShot`).

        Args:
            direction: one direction or several.
            norms: whether LayerNorms and the norm of the embedding are "held", so that
                <y_l, gradient> are the exact terms of a sum, or "differentiated", so that
                <change of y_l, gradient> is the effect of a small change to first order.

        Raises:
            InputError: a direction of another width than the embedding.
        """
        return self.read_output(direction, norms=norms).y

    @torch.no_grad()
    def read_output(
        self,
        direction: Float[Tensor, "*direction d_embed"],
        through: StandIn | None = None,
        norms: Norms = "held",
    ) -> Readout:
        """The readout <e/||e||, direction> of the embedding e, with ||e|| held.

        Args:
            direction: one direction or several.
            through: the backward pass of a linear map in the place of the MLPs, which are cut by
                default: it gives the gradient of x_l for l and the gradients of y_l and of all
                later y. The constants of that map (biases, errors) are not among the terms.
            norms: whether LayerNorms and the norm of the embedding are "held" or
                "differentiated".

        Raises:
            InputError: a direction of another width than the embedding.
        """
        if direction.shape[-1] != self.embeddings.shape[-1]:
            raise InputError(
                "direction",
                f"has width {direction.shape[-1]}; expected that of the embedding, "
                f"{self.embeddings.shape[-1]}.",
            )
        size = self.embeddings.norm(dim=-1, keepdim=True)
        at_unit = direction.to(self.embeddings)[..., None, :]
        if norms == "differentiated":
            unit = self.embeddings / size
            at_unit = at_unit - (at_unit * unit).sum(-1, keepdim=True) * unit
        at_e = at_unit / size
        at_norm = at_e if self._visual.proj is None else at_e @ self._visual.proj.mT
        stream = at_norm.new_zeros(*at_norm.shape[:-1], *self.x.shape[-2:])
        stream[..., 0, :] = self._ln_post.back(at_norm, norms)
        bias = at_norm @ self._ln_post.bias
        return self._back(stream, self.vit.cfg.n_layers, bias, through=through, norms=norms)

    @torch.no_grad()
    def read_mlp_input(
        self,
        layer: int,
        rows: Int[Tensor, " direction"],
        vectors: Float[Tensor, "direction d_model"],
        norms: Norms = "held",
    ) -> Readout:
        """The readouts <x_l[row], vector>, one for each row and vector.

        Their `y` has the layers below l. The pre-activation of a feature is the readout of
        W_enc[l]_i, plus b_enc[l]_i.

        Raises:
            InputError: a layer or row out of range.
        """
        n, n_tokens = self.vit.cfg.n_layers, self.vit.cfg.n_tokens
        if not 0 <= layer < n:
            raise InputError("layer", f"is {layer}; expected a layer from 0 to {n - 1}.")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n_tokens:
            raise InputError(
                "rows",
                f"run from {int(rows.min())} to {int(rows.max())}; expected token rows from "
                f"0 to {n_tokens - 1}.",
            )
        norm = self._ln_2[layer]
        at_x = vectors.new_zeros(len(rows), *self.x.shape[1:])
        at_x[torch.arange(len(rows), device=rows.device), :, rows] = vectors[:, None]
        bias = (vectors @ norm.bias)[:, None].expand(-1, self.x.shape[1])
        return self._back(norm.back(at_x, norms), layer, bias, from_mid=True, norms=norms)

    def _back(
        self,
        stream: Tensor,
        layer: int,
        reader_bias: Tensor,
        from_mid: bool = False,
        through: StandIn | None = None,
        norms: Norms = "held",
    ) -> Readout:
        """The readout whose gradient with respect to pre_layer, or to mid_layer, is `stream`."""
        y: dict[int, Tensor] = {}
        biases: list[Tensor] = []
        if from_mid:
            stream, bias = self._through_attention(stream, layer, norms)
            biases.append(bias)
        for l in reversed(range(layer)):
            y[l] = scaled(stream, self.vit.blocks[l].gamma2)
            if through is not None:
                at_x = through(l, y)
                reader_bias = reader_bias + at_x.sum(-2) @ self._ln_2[l].bias
                stream = stream + self._ln_2[l].back(at_x, norms)
            stream, bias = self._through_attention(stream, l, norms)
            biases.append(bias)
        norm = self._ln_pre
        ln_pre_bias = torch.zeros_like(reader_bias)
        if norm is not None:
            ln_pre_bias, stream = stream.sum(-2) @ norm.bias, norm.back(stream, norms)
        nothing = stream.new_zeros(*stream.shape[:-3], 0, *stream.shape[-3:])
        return Readout(
            y=torch.stack([y[l] for l in range(layer)], dim=-4) if y else nothing,
            inputs=stream,
            ln_pre_bias=ln_pre_bias,
            attention_bias=torch.stack(biases[::-1], dim=-2),
            reader_bias=reader_bias,
        )

    def _through_attention(self, mid: Tensor, layer: int, norms: Norms) -> tuple[Tensor, Tensor]:
        """The gradient with respect to pre_l from that of mid_l, and the term of the biases."""
        block = self.vit.blocks[layer]
        attn: Any = block.native.attn
        norm = self._ln_1[layer]
        w_v, b_v = attn.in_proj_weight.chunk(3)[2], attn.in_proj_bias.chunk(3)[2]
        at_out = scaled(mid, block.gamma1)
        at_z = at_out @ attn.out_proj.weight
        at_heads = rearrange(at_z, "... query (head d) -> ... head query d", head=attn.num_heads)
        # the gradient of each key row is a sum over the queries that attend to it
        at_values = self.pattern[layer].mT @ at_heads
        at_v = rearrange(at_values, "... head key d -> ... key (head d)")
        at_norm = at_v @ w_v
        bias = (
            at_out.sum(-2) @ attn.out_proj.bias + at_v.sum(-2) @ b_v + at_norm.sum(-2) @ norm.bias
        )
        return mid + norm.back(at_norm, norms), bias


@dataclass(frozen=True)
class _Norm:
    """A LayerNorm with the 1/std of the clean pass."""

    gain: Tensor
    bias: Tensor
    scale: Tensor
    """1/std of every row, "*row 1"."""
    unit: Tensor
    """(v - mean v) / std, "*row d_model"."""

    @classmethod
    def held(cls, norm: nn.LayerNorm, stream: Tensor) -> _Norm:
        scale = torch.rsqrt(stream.var(-1, correction=0, keepdim=True) + norm.eps)
        return cls(norm.weight, norm.bias, scale, (stream - stream.mean(-1, keepdim=True)) * scale)

    def back(self, gradient: Tensor, norms: Norms = "held") -> Tensor:
        """The gradient with respect to the input, from that of the output."""
        scaled = gradient * self.gain
        centred = scaled - scaled.mean(-1, keepdim=True)  # centring is its own transpose
        if norms == "differentiated":
            centred = centred - (scaled * self.unit).mean(-1, keepdim=True) * self.unit
        return centred * self.scale
