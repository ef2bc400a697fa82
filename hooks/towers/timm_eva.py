"""timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder, and ViTs with rotary positions."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from timm.models.eva import EvaBlock
from torch import Tensor

from vit_clt.hooks.towers.timm_base import TimmBlock, TimmTower


class TimmEvaTower(TimmTower):
    """An `Eva` of blocks that normalise before attention and MLP."""

    native_block = EvaBlock
    hooked_block = TimmBlock

    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The first lines of timm's `forward_features`."""
        x, _ = self.trunk._pos_embed(self.trunk.patch_embed(images))
        return self.trunk.norm_pre(x)

    def positions(self, layer: int) -> dict[str, Any]:
        """The rotary positions of the patch grid, which depend on no image."""
        rope = self.trunk.rope
        if rope is None:
            return {"rope": None}
        # as timm: positions are kept for one grid, unless images may be of any size
        kept = not self.trunk.dynamic_img_size and hasattr(rope, "feat_shape")
        rotary = rope.get_embed() if kept else rope.get_embed(shape=self.rows.grid)
        return {"rope": rotary[layer] if self.trunk.rope_mixed else rotary}
