"""transformers' DINOv2, with and without registers, and DINOv3."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_clt.hooks.rows import TokenRows
from vit_clt.hooks.towers.transformers_base import TransformersBlock, TransformersTower


class _Block(TransformersBlock):
    """A `Dinov2Layer`, `Dinov2WithRegistersLayer` or `DINOv3ViTLayer`, with LayerScale."""

    ln1 = property(attrgetter("native.norm1"))
    ln2 = property(attrgetter("native.norm2"))
    attn = property(attrgetter("native.attention"))
    gamma1 = property(attrgetter("native.layer_scale1.lambda1"))
    gamma2 = property(attrgetter("native.layer_scale2.lambda1"))


class Dinov2Tower(TransformersTower):
    """A `Dinov2Model` or `Dinov2WithRegistersModel`, or a classifier around one.

    The embedding is the class token's row after the last norm. A classifier reads that row and the
    mean of the patch rows, which are its embedding one after the other.
    """

    hooked_block = _Block

    @property
    def _layers(self) -> nn.ModuleList:
        return self.trunk.encoder.layer

    def _rows(self, grid: tuple[int, int]) -> TokenRows:
        return TokenRows(True, getattr(self.trunk.config, "num_register_tokens", 0), grid)

    @property
    def _pools_cls(self) -> bool:
        return self.model is self.trunk

    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The first line of the model's forward, which interpolates positions where it must."""
        return self.trunk.embeddings(images)

    def head(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch d_embed"]:
        """The last lines of the model's forward."""
        rows = self._norm(resid)
        if self._pools_cls:
            return rows[:, 0, :]
        return torch.cat([rows[:, 0], rows[:, self.rows.first_patch :].mean(dim=1)], dim=1)

    @property
    def _norm(self) -> nn.Module:
        return self.trunk.layernorm


class Dinov3Tower(Dinov2Tower):
    """A `DINOv3ViTModel`, whose positions are rotary and depend on the patch grid alone."""

    @property
    def _layers(self) -> nn.ModuleList:
        return self.trunk.model.layer

    @property
    def _norm(self) -> nn.Module:
        return self.trunk.norm

    def positions(self) -> dict[str, Any]:
        """The rotary positions of the patch rows, made by the model's own module."""
        # the module reads nothing of an image but its shape, type and device
        shape = torch.empty((), dtype=self.dtype, device=self.device).expand(1, 3, *self.image_size)
        return {"position_embeddings": self.trunk.rope_embeddings(shape)}
