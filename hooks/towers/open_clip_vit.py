"""open_clip's own vision transformer, in a CLIP, a CoCa, or by itself."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import HookedBlock, Recorder
from vit_clt.hooks.patterns import Edit, same
from vit_clt.hooks.rows import TokenRows
from vit_clt.hooks.towers.base import Tower


class OpenClipTower(Tower):
    """A model whose vision tower is open_clip's `VisionTransformer`.

    Embedding and pooling are open_clip's own, so that every option of them stays exact.

    Raises:
        InputError: blocks of another class, or an embedding that is not pooled.
    """

    family = "open_clip"

    def __init__(self, model: nn.Module, visual: VisionTransformer, recorder: Recorder):
        self.model, self.visual = model, visual
        if not visual.transformer.batch_first:
            raise InputError(
                "model", "has a sequence-first transformer; expected batch_first=True."
            )
        if visual.pool_type == "none":
            raise InputError("model", "gives an embedding for every token; expected a pooled one.")
        self.blocks = [_block(native, recorder) for native in visual.transformer.resblocks]
        self.image_size = tuple(visual.image_size)
        self.rows = TokenRows(True, 0, tuple(visual.grid_size))
        self.pools_cls = visual.attn_pool is None and visual.pool_type == "tok"
        self.d_model = visual.positional_embedding.shape[-1]
        native: Any = visual.transformer.resblocks[0]
        self.n_heads = native.attn.num_heads
        self.activation = type(native.mlp.gelu).__name__

    @property
    def _visual(self) -> Any:
        return self.visual

    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """open_clip's `_embeds`."""
        return self._visual._embeds(images)

    def head(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch d_embed"]:
        """open_clip's `_pool`, and the projection."""
        pooled, _ = self._visual._pool(resid)
        return pooled if self._visual.proj is None else pooled @ self._visual.proj


class _OpenClipBlock(HookedBlock):
    """A `ResidualAttentionBlock`."""

    ln1 = property(attrgetter("native.ln_1"))
    ln2 = property(attrgetter("native.ln_2"))
    mlp = property(attrgetter("native.mlp"))

    @property
    def gamma1(self) -> Tensor | None:
        return getattr(self.native.ls_1, "gamma", None)

    @property
    def gamma2(self) -> Tensor | None:
        return getattr(self.native.ls_2, "gamma", None)

    def attention(self, x: Tensor) -> Tensor:
        return self.native.attention(x)

    def pattern_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # torch's MultiheadAttention keeps its kernel to itself
        attn = self.native.attn
        qkv = nn.functional.linear(x, attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = rearrange(
            qkv, "batch token (qkv head d) -> qkv batch head token d", qkv=3, head=attn.num_heads
        )
        return torch.softmax(q @ k.mT / attn.head_dim**0.5, dim=-1), v

    def unfused_attention(self, x: Tensor, edit: Edit = same, edit_heads: Edit = same) -> Tensor:
        pattern, v = self.pattern_and_values(x)
        z = rearrange(edit_heads(edit(pattern) @ v), "batch head query d -> batch query (head d)")
        return self.native.attn.out_proj(z)


class _CustomBlock(HookedBlock):
    """A `CustomResidualAttentionBlock`, with norms inside attention or MLP."""

    ln1 = property(attrgetter("native.ln_1"))
    ln2 = property(attrgetter("native.ln_2"))
    mlp = property(attrgetter("native.mlp"))
    gamma1 = _OpenClipBlock.gamma1
    gamma2 = _OpenClipBlock.gamma2

    def attention(self, x: Tensor) -> Tensor:
        return self.native.ln_attn(self.native.attn(x))


_BLOCKS: dict[type[nn.Module], type[HookedBlock]] = {
    ResidualAttentionBlock: _OpenClipBlock,
    CustomResidualAttentionBlock: _CustomBlock,
}


def _block(native: nn.Module, recorder: Recorder) -> HookedBlock:
    if type(native) not in _BLOCKS:
        raise InputError(
            "model",
            f"has blocks of class {type(native).__name__}; expected open_clip's "
            "ResidualAttentionBlock.",
        )
    return _BLOCKS[type(native)](native, recorder)
