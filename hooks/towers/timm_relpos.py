"""timm's ViTs with relative positions: `VisionTransformerRelPos` and `Beit`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.models import beit
from timm.models.vision_transformer_relpos import RelPosBlock
from torch import Tensor

from vit_clt.hooks.towers.timm_base import TimmBlock, TimmTower


class TimmRelPosTower(TimmTower):
    """A `VisionTransformerRelPos` of blocks that normalise before attention and MLP."""

    native_block = RelPosBlock
    hooked_block = TimmBlock

    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The first lines of timm's `forward_features`; positions enter in attention alone."""
        return _with_cls(self.trunk, self.trunk.patch_embed(images))

    def positions(self, layer: int) -> dict[str, Any]:
        """The bias that all layers share, if they do; others keep their own."""
        shared = self.trunk.shared_rel_pos
        return {"shared_rel_pos": None if shared is None else shared.get_bias()}


class TimmBeitTower(TimmTower):
    """A `Beit`."""

    native_block = beit.Block
    hooked_block = TimmBlock

    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The first lines of timm's `forward_features`."""
        x = _with_cls(self.trunk, self.trunk.patch_embed(images))
        if self.trunk.pos_embed is not None:
            x = x + self.trunk.pos_embed
        return self.trunk.pos_drop(x)

    def positions(self, layer: int) -> dict[str, Any]:
        """The bias that all layers share, if they do; others keep their own."""
        shared = self.trunk.rel_pos_bias
        return {"shared_rel_pos_bias": None if shared is None else shared()}


def _with_cls(trunk: Any, patches: Tensor) -> Tensor:
    if trunk.cls_token is None:
        return patches
    return torch.cat((trunk.cls_token.expand(len(patches), -1, -1), patches), dim=1)
