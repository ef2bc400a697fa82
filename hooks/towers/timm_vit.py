"""timm's `VisionTransformer`: ViT, DeiT, DINO, DINOv2 (with registers), MAE, SigLIP, CLIP."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vit_clt.hooks.blocks import Recorder
from vit_clt.hooks.towers.timm_base import TimmBlock, TimmTower


class TimmViTTower(TimmTower):
    """A `VisionTransformer`; the distillation token of DeiT counts as a register."""

    native_block = Block
    hooked_block = TimmBlock

    def __init__(self, model: nn.Module, visual: nn.Module, trunk: nn.Module, recorder: Recorder):
        super().__init__(model, visual, trunk, recorder)
        if isinstance(trunk, VisionTransformerDistilled):
            # both tokens are read, each by a classifier of its own
            self.pools_cls, self.classifier = False, None

    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The first lines of timm's `forward_features`."""
        x = self.trunk._pos_embed(self.trunk.patch_embed(images))
        return self.trunk.norm_pre(self.trunk.patch_drop(x))

    def positions(self, layer: int) -> dict[str, Any]:
        """Nothing: positions are added in `embed`."""
        return {}
