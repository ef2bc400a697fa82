"""transformers' CLIP and SigLIP: the vision tower by itself, in both towers, or in a classifier."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_clt.hooks.rows import TokenRows
from vit_clt.hooks.towers.transformers_base import TransformersBlock, TransformersTower


class TextTower:
    """The text side of a transformers CLIP or SigLIP, by the names that open_clip has for it."""

    def __init__(self, model: Any):
        self.model = model

    def encode_text(
        self, tokens: Int[Tensor, "batch context"], normalize: bool = False
    ) -> Float[Tensor, "batch d_embed"]:
        """Text embeddings of token ids, which the model's own `get_text_features` gives."""
        out = self.model.get_text_features(input_ids=tokens, return_dict=True).pooler_output
        return F.normalize(out, dim=-1) if normalize else out

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The logarithm of the factor that turns cosines into logits."""
        return self.model.logit_scale.reshape(())

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """What SigLIP adds to every logit; None for a CLIP."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.reshape(())


class _Block(TransformersBlock):
    """A `CLIPEncoderLayer` or `SiglipEncoderLayer`."""

    ln1 = property(attrgetter("native.layer_norm1"))
    ln2 = property(attrgetter("native.layer_norm2"))
    attn = property(attrgetter("native.self_attn"))


class ClipTower(TransformersTower):
    """A `CLIPVisionModel`, or a model around one.

    The embedding is the class token's row after the last norm, and the projection where the model
    has one. `CLIPForImageClassification` reads the mean of the patch rows, without that norm.
    """

    hooked_block = _Block

    @property
    def _layers(self) -> nn.ModuleList:
        return self.trunk.encoder.layers

    @property
    def text(self) -> TextTower | None:
        """The text tower, if the model has one."""
        return TextTower(self.model) if hasattr(self.model, "get_text_features") else None

    @property
    def _pools_cls(self) -> bool:
        return not self._is_classifier

    @property
    def _is_classifier(self) -> bool:
        return self.wrapper.endswith("ForImageClassification")

    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The first lines of the forward of `CLIPVisionModel`."""
        x = self.trunk.embeddings(images, interpolate_pos_encoding=self.interpolates)
        return self.trunk.pre_layrnorm(x)

    def head(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch d_embed"]:
        """The last lines of the model's forward."""
        if self._is_classifier:
            return resid[:, 1:, :].mean(dim=1)
        pooled = self.trunk.post_layernorm(resid[:, 0, :])
        model: Any = self.model
        return model.visual_projection(pooled) if hasattr(model, "visual_projection") else pooled


class SiglipTower(ClipTower):
    """A `SiglipVisionModel`, or a model around one; SigLIP 2 of a fixed resolution is one too.

    The embedding is that of the attention pool. `SiglipForImageClassification` reads the mean of
    all rows, and that mean is the embedding of a tower without a pool (as PaliGemma has) as well.
    """

    @property
    def _pools_cls(self) -> bool:
        return False

    def _rows(self, grid: tuple[int, int]) -> TokenRows:
        return TokenRows(False, 0, grid)

    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The first line of the forward of `SiglipVisionModel`."""
        return self.trunk.embeddings(images, interpolate_pos_encoding=self.interpolates)

    def head(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch d_embed"]:
        """The last lines of the model's forward."""
        rows = self.trunk.post_layernorm(resid)
        pools = self.trunk.use_head and not self._is_classifier
        return self.trunk.head(rows) if pools else rows.mean(dim=1)
