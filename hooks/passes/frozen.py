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
biases. A `Readout` has its gradients, which are computed by explicit linear algebra. What each
attention head does in it is in `vit_clt.hooks.passes.carried`.

A norm that is held does not take out a component that it would normalise away: a part of y along
the embedding adds to every logit, though it does not change the cosine. With
`norms="differentiated"` gradients go through the norms as well. They then give the effect of a
small change to first order (with attention held), and no longer sum to the readout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from vit_clt.hooks.passes.held import HeldAttention, HeldNorm
from vit_clt.hooks.passes.readout import Reader, Readout
from vit_clt.hooks.points import ATTN_IN, HOOK_IN, HOOK_OUT, RESID_MID, RESID_POST, RESID_PRE

StandIn = Callable[
    [int, Mapping[int, Float[Tensor, "*direction batch token d_model"]]],
    Float[Tensor, "*direction batch token d_model"],
]
"""The backward pass of a linear map in the place of the MLPs; see `FrozenPass.read_output`."""


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
        self.attention = [
            HeldAttention(
                block.native.attn,
                HeldNorm.of(block.ln1, clean.at(RESID_PRE, l)),
                self.pattern[l],
                block.gamma1,
            )
            for l, block in blocks
        ]
        """The attention of every block, as a linear map."""
        self._ln_2 = [HeldNorm.of(block.ln2, clean.at(RESID_MID, l)) for l, block in blocks]
        self._ln_post = HeldNorm.of(self._visual.ln_post, clean.at(RESID_POST, layers[-1])[:, 0])
        self.ln_pre = None
        if isinstance(self._visual.ln_pre, nn.LayerNorm):
            entering = self.positions.expand(len(images), -1, -1).clone()
            entering[:, 0] += self.class_token
            entering[:, 1:] += self.patches
            self.ln_pre = HeldNorm.of(self._visual.ln_pre, entering)

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
        return self.readout(self.output_reader(direction, norms), through)

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
        return self.readout(self.mlp_input_reader(layer, rows, vectors, norms))

    @torch.no_grad()
    def output_reader(
        self, direction: Float[Tensor, "*direction d_embed"], norms: Norms = "held"
    ) -> Reader:
        """Where `read_output` reads: the class row after the last block.

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
        n = self.vit.cfg.n_layers
        return Reader(stream, n, n, bias, norms)

    @torch.no_grad()
    def mlp_input_reader(
        self,
        layer: int,
        rows: Int[Tensor, " direction"],
        vectors: Float[Tensor, "direction d_model"],
        norms: Norms = "held",
    ) -> Reader:
        """Where `read_mlp_input` reads: the stream after the attention of the layer.

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
        return Reader(norm.back(at_x, norms), layer + 1, layer, bias, norms)

    @torch.no_grad()
    def readout(
        self, reader: Reader, through: StandIn | None = None, attention: bool = True
    ) -> Readout:
        """The terms of a readout, from where it reads.

        Args:
            reader: where it reads.
            through: as for `read_output`.
            attention: whether terms also come through attention. Without it they are those that
                come through the residual stream alone, out_proj's biases among them.
        """
        stream, norms, reader_bias = reader.stream, reader.norms, reader.bias
        y: dict[int, Tensor] = {}
        biases: list[Tensor] = []
        for l in reversed(range(reader.n_attentions)):
            if l < reader.n_mlps:
                y[l] = scaled(stream, self.vit.blocks[l].gamma2)
                if through is not None:
                    at_x = through(l, y)
                    reader_bias = reader_bias + at_x.sum(-2) @ self._ln_2[l].bias
                    stream = stream + self._ln_2[l].back(at_x, norms)
            if attention:
                below, bias = self.attention[l].back(stream, norms)
                stream = stream + below
            else:
                bias = self.attention[l].out_bias(stream)
            biases.append(bias)
        norm = self.ln_pre
        ln_pre_bias = torch.zeros_like(reader_bias)
        if norm is not None:
            ln_pre_bias, stream = stream.sum(-2) @ norm.bias, norm.back(stream, norms)
        nothing = stream.new_zeros(*stream.shape[:-3], 0, *stream.shape[-3:])
        return Readout(
            y=torch.stack([y[l] for l in range(reader.n_mlps)], dim=-4) if y else nothing,
            inputs=stream,
            ln_pre_bias=ln_pre_bias,
            attention_bias=torch.stack(biases[::-1], dim=-2) if biases else nothing[..., 0, 0],
            reader_bias=reader_bias,
        )
