"""Models in float64, and a second implementation of the frozen one, differentiable."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from builders import random_clt, tiny_clip
from torch import Tensor

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK
from vit_clt.hooks import HookedViT


def double_vit(**vision: Any) -> HookedViT:
    vit = HookedViT(tiny_clip(**vision))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for name, parameter in vit.model.visual.named_parameters():
            if "ln_" in name or "gamma" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return vit.double()


def double_clt(
    vit: HookedViT, sparsifier: Any = None, *, per_layer: bool = False
) -> CrossLayerTranscoder:
    if not per_layer:
        return random_clt(vit, sparsifier).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLTConfig(4, 16, 24, sparsifier or ReLUTopK(k=5), cross_layer=False)
        clt = CrossLayerTranscoder(config).eval().requires_grad_(False)
        clt.b_enc.normal_(std=0.3)
        clt.b_dec.normal_(std=0.3)
    return clt.double()


class Held:
    """The frozen model as a function of its sources; torch's modules give all that is held."""

    def __init__(self, vit: HookedViT, images: Tensor):
        visual: Any = vit.model.visual
        self.visual, self.blocks = visual, visual.transformer.resblocks
        with torch.no_grad():
            self.patches = visual.conv1(images).flatten(2).transpose(1, 2)
            self.cls, self.position = visual.class_embedding, visual.positional_embedding
            self.held: dict[str, Tensor] = {}
            self.y: list[Tensor] = []
            stream = visual._embeds(images)
            self.held["pre"] = self._std(self._entering(self.patches))
            for l, block in enumerate(self.blocks):
                normed = F.layer_norm(stream, stream.shape[-1:], *self._affine(block.ln_1))
                out, pattern = block.attn(
                    normed, normed, normed, need_weights=True, average_attn_weights=False
                )
                self.held[f"pattern {l}"], self.held[f"1 {l}"] = pattern, self._std(stream)
                stream = stream + block.ls_1(out)
                self.held[f"2 {l}"] = self._std(stream)
                normed = F.layer_norm(stream, stream.shape[-1:], *self._affine(block.ln_2))
                self.y.append(block.mlp(normed))
                stream = stream + block.ls_2(self.y[-1])
            self.held["post"] = self._std(stream[:, 0])
            self.held["norm"] = vit(images).norm(dim=-1, keepdim=True)

    def run(
        self, patches: Tensor, y: list[Tensor], read: int | None = None, norms: bool = True
    ) -> Tensor:
        """e / held norm, or with `read` x_l of that layer; without `norms` these are not held."""
        stream = self._entering(patches)
        if isinstance(self.visual.ln_pre, torch.nn.LayerNorm):
            stream = self._norm(stream, self.visual.ln_pre, "pre", norms)
        for l, block in enumerate(self.blocks):
            normed = self._norm(stream, block.ln_1, f"1 {l}", norms)
            attn = block.attn
            w_v = attn.in_proj_weight[2 * stream.shape[-1] :]
            b_v = attn.in_proj_bias[2 * stream.shape[-1] :]
            v = (normed @ w_v.T + b_v).unflatten(-1, (attn.num_heads, -1))
            z = torch.einsum("bhqk,bkhd->bqhd", self.held[f"pattern {l}"], v).flatten(2)
            stream = stream + block.ls_1(attn.out_proj(z))
            if read == l:
                return self._norm(stream, block.ln_2, f"2 {l}", norms)
            stream = stream + block.ls_2(y[l])
        e = self._norm(stream[:, 0], self.visual.ln_post, "post", norms) @ self.visual.proj
        return e / (self.held["norm"] if norms else e.norm(dim=-1, keepdim=True))

    def _entering(self, patches: Tensor) -> Tensor:
        cls = self.cls.expand(len(patches), 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position

    def _norm(self, stream: Tensor, norm: Any, name: str, held: bool) -> Tensor:
        centred = stream - stream.mean(-1, keepdim=True)
        std = self.held[name] if held else self._std(stream)
        return centred / std * norm.weight + norm.bias

    @staticmethod
    def _std(stream: Tensor) -> Tensor:
        return (stream.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    @staticmethod
    def _affine(norm: Any) -> tuple[Tensor, Tensor]:
        return norm.weight, norm.bias
