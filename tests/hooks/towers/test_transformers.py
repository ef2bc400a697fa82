"""Models of transformers that are already loaded: which fit, their sizes, texts and identity."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from assertions import one_sentence
from builders import tiny_transformers
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from vit_clt import InputError
from vit_clt.hooks import HookedViT


def noise(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def llava(vision: object) -> nn.Module:
    """A model of images and language around a vision tower of this configuration."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.LlamaConfig(**sizes, intermediate_size=32, vocab_size=64)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text)
    return transformers.LlavaForConditionalGeneration(config).eval()


# ---- TransformerLens' own bridge ------------------------------------------------------------


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DeiTModel"])
def test_equals_the_bridge_of_transformer_lens_at_every_hook_point(
    name: str, tmp_path: Path
) -> None:
    model = tiny_transformers(name, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(
        str(tmp_path), hf_model=copy.deepcopy(model), device="cpu"
    )
    vit = HookedViT(model)
    vit.set_use_attn_pattern(True)
    _, theirs = bridge.run_with_cache(noise(16, 16))
    _, ours = vit.run_with_cache(noise(16, 16))
    names = [name for name in ours if name != "hook_input"]
    assert len(names) == 9 * vit.cfg.n_layers
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CLIPVisionModel", "Dinov2WithRegistersModel"])
def test_equals_the_model_itself_at_full_width(name: str) -> None:
    kind = getattr(transformers, name)
    model = kind(kind.config_class(num_hidden_layers=4)).eval().requires_grad_(False)
    images = noise(224, 224)
    expected = model(images).pooler_output
    assert torch.equal(HookedViT(model, image_size=224)(images), expected)


# ---- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("CLIPVisionModel", True),
        ("SiglipVisionModel", True),
        ("ViTModel", True),
        ("DeiTModel", True),
        ("Dinov2Model", False),
        ("Dinov2WithRegistersModel", False),
        ("DINOv3ViTModel", False),
    ],
)
@pytest.mark.parametrize("size", [24, (12, 20), (19, 17)])
def test_other_sizes_of_images_as_the_model_itself_takes_them(
    name: str, asks: bool, size: int | tuple[int, int]
) -> None:
    model = tiny_transformers(name)
    vit = HookedViT(model, image_size=size)
    height, width = vit.cfg.image_size
    images = noise(height, width)
    options = {"interpolate_pos_encoding": True} if asks else {}
    assert torch.equal(vit(images), model(images, **options).pooler_output)
    assert vit.cfg.patch_grid == (height // 4, width // 4)
    assert vit.identity() == HookedViT(tiny_transformers(name)).identity()


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="expected at least a patch") as error:
        HookedViT(tiny_transformers("ViTModel"), image_size=3)
    one_sentence(error)
    with pytest.raises(InputError, match="image_size is 8; expected none") as error:
        HookedViT(nn.Linear(2, 2), image_size=8)
    one_sentence(error)


# ---- pooling, identity, attention -----------------------------------------------------------


def test_a_siglip_without_a_pool_gives_the_mean_of_its_rows() -> None:
    model = tiny_transformers("SiglipVisionModel", vision_use_head=False)
    images = noise(16, 16)
    assert torch.equal(HookedViT(model)(images), model(images).last_hidden_state.mean(1))


def test_a_tower_is_the_same_vit_wherever_it_is() -> None:
    clip = tiny_transformers("CLIPModel")
    found = {HookedViT(model).identity() for model in (clip, clip.vision_model)}
    vision = llava(clip.config.vision_config)
    vision.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    tower = HookedViT(vision.model.vision_tower)
    assert found == {tower.identity()}
    images = noise(16, 16)
    assert torch.equal(tower(images), clip.vision_model(images).pooler_output)
    vit = tiny_transformers("ViTForImageClassification")
    pooled = transformers.ViTModel(vit.config)  # with a pooler, which reads the blocks' output
    pooled.load_state_dict(vit.vit.state_dict(), strict=False)
    assert HookedViT(vit).identity() == HookedViT(pooled).identity()


def test_attention_of_other_implementations_is_refused() -> None:
    model = tiny_transformers("ViTModel", attn_implementation="flex_attention")
    with pytest.raises(InputError, match='"flex_attention"; expected sdpa or eager') as error:
        HookedViT(model)
    one_sentence(error)


def test_the_implementation_is_the_models_own_also_after_its_pattern_was_read() -> None:
    model = tiny_transformers("ViTModel", attn_implementation="eager")
    vit = HookedViT(model)
    vit.set_use_attn_pattern(True)
    vit(noise(16, 16))
    assert model.config._attn_implementation == "eager"


# ---- texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_texts_are_read_by_the_models_own_text_tower(name: str) -> None:
    model = tiny_transformers(name)
    tokens = torch.tensor([[3, 5, 9, 1], [4, 7, 1, 0]])
    images = noise(16, 16)
    vit = HookedViT(model)
    own = model(input_ids=tokens, pixel_values=images)
    unit = [vit.text_tower.encode_text(tokens, normalize=True), vit(images)]
    unit[1] = unit[1] / unit[1].norm(dim=-1, keepdim=True)
    assert vit.logit_scale.shape == ()
    assert (vit.logit_bias is None) == (name == "CLIPModel")
    logits = vit.logit_scale * unit[1] @ unit[0].mT + (vit.logit_bias or 0)
    torch.testing.assert_close(logits, own.logits_per_image)
    expected = model.get_text_features(input_ids=tokens).pooler_output
    assert torch.equal(vit.encode_text(tokens), expected)


def test_texts_without_a_text_tower_are_refused() -> None:
    vit = HookedViT(tiny_transformers("CLIPVisionModel"))
    with pytest.raises(InputError, match="has no text tower") as error:
        vit.encode_text(torch.zeros(1, 4, dtype=torch.long))
    one_sentence(error)


# ---- what does not fit ----------------------------------------------------------------------


def test_what_does_not_fit_is_named() -> None:
    swin = transformers.SwinModel(
        transformers.SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[2])
    )
    with pytest.raises(InputError, match="is a SwinModel of transformers") as error:
        HookedViT(swin)
    one_sentence(error)
    with pytest.raises(InputError, match=r"expected its vision tower, model\.model\.vision_tower"):
        HookedViT(llava(tiny_transformers("CLIPVisionModel").config))
