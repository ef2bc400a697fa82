"""One clean pass of a batch, and passes with the output of single attention heads overwritten.

Head h of layer l puts out z_h = P_h V_h, pattern times values, before the heads are projected
together. On some rows it is overwritten by a fill, which changes the residual stream after that
attention layer. For the **total** effect everything downstream is recomputed; for the **direct**
effect only the final norm and the pooling see the change.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.choices import TokenKind
from vit_clt.hooks.blocks import scaled
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.interventions import check_unhooked, overwrite_attn_hooks
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import ATTN_IN, RESID_MID, RESID_POST, RESID_PRE
from vit_clt.hooks.rows import token_rows

HeadValues = Mapping[int, Float[Tensor, "*batch head row d_head"]]
"""By layer, what is written over the outputs of all heads on the ablated rows."""


class HeadPass(CleanPass):
    """The clean pass of one batch; passes with heads overwritten go on from it.

    Args:
        vit: the model, with no hooks attached, whose attention calls torch's kernel once a layer.
        images: one batch of images.
        ablated: token rows that are overwritten.

    Raises:
        InputError: hooks are attached, an unknown token kind, images of another shape, or, when
            heads are first read, an attention whose heads cannot be.
    """

    @torch.no_grad()
    def __init__(
        self,
        vit: HookedViT,
        images: Float[Tensor, "batch 3 height width"],
        *,
        ablated: TokenKind = "all",
    ):
        check_unhooked(vit)
        self.ablated = ablated
        self._rows = token_rows(ablated, vit.cfg.rows)
        layers = range(vit.cfg.n_layers)
        ends = {RESID_PRE: layers[:1], RESID_POST: layers[-1:]}
        super().__init__(vit, images, dict.fromkeys((ATTN_IN, RESID_MID), layers) | ends)

    @torch.no_grad()
    def outputs(self, layer: int) -> Float[Tensor, "batch head row d_head"]:
        """What every head of a layer puts out on the ablated rows."""
        pattern, values = self.vit.blocks[layer].pattern_and_values(self.at(ATTN_IN, layer))
        return (pattern @ values)[..., self._rows, :]

    @torch.no_grad()
    def change(
        self, layer: int, head: int, values: HeadValues | None
    ) -> Float[Tensor, "batch token d_model"]:
        """What overwriting a head adds to the residual stream, after LayerScale.

        Args:
            layer: the layer of the head.
            head: its number.
            values: what is written; None writes zeros.
        """
        block, x = self.vit.blocks[layer], self.at(ATTN_IN, layer)
        altered = self._overwritten(layer, slice(head, head + 1), values)
        return scaled(altered - block.unfused_attention(x), block.gamma1)

    @torch.no_grad()
    def total(
        self, layer: int, change: Float[Tensor, "batch token d_model"]
    ) -> Float[Tensor, "batch d_embed"]:
        """The embeddings if the attention of a layer adds this much more to the residual stream.

        Everything downstream is recomputed, from the MLP of the layer on.
        """
        block, mid = self.vit.blocks[layer], self.at(RESID_MID, layer) + change
        return self.from_layer(layer + 1, block.add_mlp(mid, block.mlp(block.ln2(mid))))

    @torch.no_grad()
    def direct(
        self, change: Float[Tensor, "batch token d_model"]
    ) -> Float[Tensor, "batch d_embed"]:
        """The embeddings if only the final norm and the pooling see this change of the stream."""
        return self.vit.head(self.at(RESID_POST, self.vit.cfg.n_layers - 1) + change)

    @torch.no_grad()
    def every_head(self, values: HeadValues | None) -> Float[Tensor, "batch d_embed"]:
        """The embeddings with all heads of all layers overwritten at once: the floor."""
        layers, rows = range(self.vit.cfg.n_layers), self._rows
        outs = {l: self._overwritten(l, slice(None), values)[:, rows] for l in layers}
        hooks = overwrite_attn_hooks(layers, self.ablated, outs)
        return self.from_layer(0, self.at(RESID_PRE, 0), hooks)

    def _overwritten(self, layer: int, heads: slice, values: HeadValues | None) -> Tensor:
        """The output of an attention layer with these heads overwritten on the ablated rows."""

        def overwrite(z: Tensor) -> Tensor:
            z = z.clone()
            z[:, heads, self._rows] = 0 if values is None else values[layer][..., heads, :, :].to(z)
            return z

        block = self.vit.blocks[layer]
        return block.unfused_attention(self.at(ATTN_IN, layer), edit_heads=overwrite)
