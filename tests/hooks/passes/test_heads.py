"""Passes with single heads overwritten: against hooks on the model's own projection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import tiny_timm
from einops import rearrange
from oracles.frozen_oracle import double_vit
from torch import Tensor

from vit_clt import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.passes.heads import HeadPass


def by_torch_attention(vit: HookedViT, images: Tensor, edits: dict[int, Any]) -> Tensor:
    """open_clip's own blocks, attention written out, with what heads put out edited by layer."""
    visual: Any = vit.model.visual
    stream = visual._embeds(images)
    for l, block in enumerate(visual.transformer.resblocks):
        attn, x = block.attn, block.ln_1(stream)
        qkv = x @ attn.in_proj_weight.T + attn.in_proj_bias
        q, k, v = rearrange(qkv, "b t (three h d) -> three b h t d", three=3, h=attn.num_heads)
        z = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
        z = edits.get(l, lambda z: z)(z)
        out = rearrange(z, "b h t d -> b t (h d)") @ attn.out_proj.weight.T + attn.out_proj.bias
        stream = stream + block.ls_1(out)
        stream = stream + block.ls_2(block.mlp(block.ln_2(stream)))
    pooled = visual.ln_post(stream[:, 0])
    return pooled @ visual.proj


def writes(head: Any, rows: slice, value: Any) -> Any:
    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, head, rows] = value
        return z

    return edit


@pytest.mark.parametrize(("ablated", "rows"), [("all", slice(None)), ("patch", slice(1, None))])
@pytest.mark.parametrize("fill", ["zero", "mean", "resample"])
def test_total_effects_are_those_of_the_models_own_attention(
    fill: str, ablated: Any, rows: slice, images: Tensor
) -> None:
    vit, images = double_vit(ls_init_value=0.7), images.double()
    clean = HeadPass(vit, images, ablated=ablated)
    layers = range(4)
    own = {l: clean.outputs(l) for l in layers}
    values = {
        "zero": None,
        "mean": {l: own[l].mean(0) for l in layers},
        "resample": {l: own[l].roll(1, 0) for l in layers},
    }[fill]
    for l, h in ((0, 1), (2, 0)):
        value = 0 if values is None else values[l][..., h, :, :]
        wanted = by_torch_attention(vit, images, {l: writes(h, rows, value)})
        found = clean.total(l, clean.change(l, h, values))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(found, clean.embeddings)
    everything = {l: writes(slice(None), rows, 0 if values is None else values[l]) for l in layers}
    wanted = by_torch_attention(vit, images, everything)
    torch.testing.assert_close(clean.every_head(values), wanted, rtol=1e-9, atol=1e-12)


def test_a_direct_effect_is_seen_by_the_final_norm_alone(images: Tensor) -> None:
    vit, images = double_vit(), images.double()
    visual: Any = vit.model.visual
    clean = HeadPass(vit, images)
    out_proj = visual.transformer.resblocks[1].attn.out_proj
    written = clean.outputs(1)[:, 0, 0] @ out_proj.weight[:, :8].T
    stream = vit(images, stop_at_layer=4)[:, 0] - written
    wanted = visual.ln_post(stream) @ visual.proj
    found = clean.direct(clean.change(1, 0, None))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_heads_keep_their_own_values(images: Tensor) -> None:
    vit, images = double_vit(), images.double()
    clean = HeadPass(vit, images)
    change = clean.change(2, 1, {2: clean.outputs(2)})
    assert not change.any()
    torch.testing.assert_close(clean.total(2, change), vit(images), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224", "vit_small_patch16_dinov3", "eva02_small_patch14_224"]
)
def test_other_families_have_heads_too(name: str) -> None:
    vit = HookedViT(tiny_timm(name)).double()
    images = torch.linspace(-2, 2, 2304, dtype=torch.float64).view(3, 3, 16, 16)
    clean = HeadPass(vit, images)
    n_heads = vit.cfg.n_heads
    values = {l: clean.outputs(l).mean(0) for l in range(vit.cfg.n_layers)}
    assert values[1].shape[0] == n_heads
    changes = [clean.change(1, h, values) for h in range(n_heads)]
    assert all(change.abs().max() > 1e-6 for change in changes)
    altered = clean.total(1, changes[0])
    hook = ("blocks.1.hook_attn_out", lambda out, hook: out + changes[0] / gamma)
    gamma = 1.0 if vit.blocks[1].gamma1 is None else vit.blocks[1].gamma1
    with vit.hooks(fwd_hooks=[hook]):
        torch.testing.assert_close(altered, vit(images), rtol=1e-8, atol=1e-10)


def test_hooks_are_refused(tiny_vit: HookedViT, images: Tensor) -> None:
    tiny_vit.blocks[0].hook_mlp_out.add_hook(lambda y, hook: y)
    with pytest.raises(InputError, match="has a hook"):
        HeadPass(tiny_vit, images)
