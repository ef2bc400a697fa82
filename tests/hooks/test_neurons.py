"""Hidden units of MLPs: the last linear layer makes y_l of them, in every family of ViTs."""

import pytest
import torch
from assertions import close, one_sentence
from builders import tiny_clip, tiny_timm, tiny_transformers
from torch import nn

from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, capture
from vit_clt.hooks.neurons import hidden_units, output_layer

MODELS = {
    "open_clip": lambda: tiny_clip(),
    "timm": lambda: tiny_timm("vit_tiny_patch16_224"),
    "timm, gated": lambda: tiny_timm("eva02_tiny_patch14_224"),
    "CLIP": lambda: tiny_transformers("CLIPVisionModel"),
    "ViT": lambda: tiny_transformers("ViTModel"),
    "DINOv2": lambda: tiny_transformers("Dinov2Model"),
}


@pytest.mark.parametrize("family", MODELS)
def test_the_last_layer_makes_y_of_them(family: str):
    vit = HookedViT(MODELS[family]())
    images = torch.randn(2, 3, *vit.cfg.image_size, generator=torch.Generator().manual_seed(0))
    found = capture(vit, images)
    for l, block in enumerate(vit.blocks):
        hidden = hidden_units(block, found.x[l])
        assert hidden.shape == (2, vit.cfg.n_tokens, output_layer(block).in_features)
        close(output_layer(block)(hidden), found.y[l])


def test_they_come_after_the_activation_function():
    clip = tiny_clip()
    block = HookedViT(clip).blocks[1]
    x = torch.randn(3, 16)
    native = clip.visual.transformer.resblocks[1].mlp
    close(hidden_units(block, x), native.gelu(native.c_fc(x)))
    assert not any(part._forward_pre_hooks for part in native.modules())


def test_an_mlp_that_ends_otherwise_is_refused():
    clip = tiny_clip()
    vit = HookedViT(clip)
    clip.visual.transformer.resblocks[0].mlp = nn.Sequential(nn.Linear(16, 8))
    with pytest.raises(InputError) as error:
        hidden_units(vit.blocks[0], torch.randn(3, 16))
    assert "do not end in a linear layer" in one_sentence(error)
