"""transformers' ViT and DeiT."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit_clt.hooks.rows import TokenRows
from vit_clt.hooks.towers.transformers_base import TransformersBlock, TransformersTower


class _Block(TransformersBlock):
    """A `ViTLayer` or `DeiTLayer`."""

    ln1 = property(attrgetter("native.layernorm_before"))
    ln2 = property(attrgetter("native.layernorm_after"))
    attn = property(attrgetter("native.attention"))


class ViTTower(TransformersTower):
    """A `ViTModel` or `DeiTModel`, or a classifier around one.

    The embedding is the class token's row after the last norm, or the pooler's output where the
    model has a pooler. DeiT's distillation token counts as a register; a DeiT with a classifier for
    each of the two tokens reads both rows, which are the embedding one after the other.
    """

    hooked_block = _Block

    def __init__(self, model: Any, *args: Any):
        super().__init__(model, *args)
        if self._reads_both:
            self.classifier = self._mean_of_both

    @property
    def _layers(self) -> nn.ModuleList:
        return self.trunk.layers

    def _rows(self, grid: tuple[int, int]) -> TokenRows:
        return TokenRows(True, int(hasattr(self.trunk.embeddings, "distillation_token")), grid)

    @property
    def _pools_cls(self) -> bool:
        return not self._reads_both

    @property
    def _reads_both(self) -> bool:
        return hasattr(self.model, "distillation_classifier")

    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The first line of the model's forward."""
        return self.trunk.embeddings(images, interpolate_pos_encoding=self.interpolates)

    def head(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch d_embed"]:
        """The last lines of the model's forward."""
        rows = self.trunk.layernorm(resid)
        if self._reads_both:
            return rows[:, :2].flatten(1)
        return rows[:, 0, :] if self.trunk.pooler is None else self.trunk.pooler(rows)

    def _mean_of_both(self, embeddings: Float[Tensor, "batch d_embed"]) -> Tensor:
        """The logits of `DeiTForImageClassificationWithTeacher`."""
        model: Any = self.model
        cls, distilled = embeddings.chunk(2, dim=-1)
        return (model.cls_classifier(cls) + model.distillation_classifier(distilled)) / 2
