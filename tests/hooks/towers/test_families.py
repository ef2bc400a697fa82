"""Which models belong to a family, and what is said about those that do not."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import timm
import torch
from builders import TINY_TIMM, tiny_timm, tiny_timm_clip
from PIL import Image
from safetensors.torch import save_file
from timm.layers import GatedMlp
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn

from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.towers.names import split_name
from vit_clt.hooks.towers.open_clip_names import shape_of

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def small_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm makes every ViT small, whatever its name."""
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: create(name, **{**TINY_TIMM, **options})
    )


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would read or download weights fails the test."""

    def load(*args: object, **kwargs: object) -> None:
        pytest.fail("began to load")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", load)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", load)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", load)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: nn.Linear(3, 3), "class Linear"),
        (lambda: timm.create_model("resnet10t"), "class ResNet"),
        (lambda: tiny_timm(NAME, block_fn=ParallelScalingBlock), "class ParallelScalingBlock"),
        (lambda: tiny_timm("vit_base_patch16_rpn_224"), "class ResPostBlock"),
        (lambda: tiny_timm("vit_relpos_base_patch16_rpn_224"), "class ResPostRelPosBlock"),
        (lambda: tiny_timm("eva02_enormous_patch14_clip_224"), "class EvaBlockPostNorm"),
        (lambda: tiny_timm(NAME, mlp_layer=GatedMlp), "class GatedMlp"),
        (lambda: tiny_timm(NAME, global_pool=""), "an embedding for every token"),
        (lambda: _changed(tiny_timm(NAME)), "class _OtherViT"),
    ],
)
def test_what_does_not_fit_is_named(model: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        HookedViT(model())
    assert "\n" not in str(caught.value)


class _OtherViT(VisionTransformer):
    """A class of its own may have a forward of its own."""


def _changed(model: nn.Module) -> nn.Module:
    model.__class__ = _OtherViT
    return model


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("name", "pretrained", "said"),
    [
        ("RN50-quickgelu", "openai", "ModifiedResNet"),
        ("convnext_base", "laion400m_s13b_b51k", "ConvNeXt"),
        ("EVA02-E-14", "laion2b_s4b_b115k", "EvaBlockPostNorm"),
        ("timm:swin_tiny_patch4_window7_224", "ms_in1k", "SwinTransformer"),
        ("timm:vit_small_patch16_18x2_224", "some_tag", "ParallelThingsBlock"),
    ],
)
def test_listed_models_are_refused_before_any_download(
    name: str, pretrained: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        HookedViT.load(name, pretrained)


@pytest.mark.parametrize(
    "name", ["ViT-B-16-SigLIP", "EVA02-B-16", "PE-Core-T-16-384", "coca_ViT-B-32"]
)
def test_listed_models_fit(name: str) -> None:
    tower = shape_of(name)
    assert len(tower.blocks) == 12
    assert next(tower.visual.parameters()).is_meta


def test_a_siglip_reads_texts() -> None:
    clip = tiny_timm_clip("vit_base_patch16_siglip_224", "map", "none")
    vit, tokens = HookedViT(clip), torch.randint(1, 64, (2, 8))
    assert torch.equal(vit.encode_text(tokens), clip.encode_text(tokens))
    assert vit.cfg.d_embed == 16


# ---- loading by name ----------------------------------------------------------------------------


@pytest.mark.usefixtures("small_timm")
@pytest.mark.parametrize("form", ["safetensors", "pth", "state_dict.pth"])
def test_a_weights_file_of_timm_loads_exactly(form: str, tmp_path: Path) -> None:
    model, path = tiny_timm(NAME, num_classes=1000), tmp_path / f"weights.{form}"
    state = model.state_dict()
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if "dict" in form else state, path)
    vit = HookedViT.load(f"timm:{NAME}:{path}")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(vit.tower.classifier(vit(images)), model(images))
    assert (vit.cfg.model, vit.cfg.pretrained) == (f"timm:{NAME}", str(path))
    again = HookedViT.load(vit.cfg.model, vit.cfg.pretrained)
    assert again.identity() == vit.identity()
    for mode in ("RGB", "L", "RGBA"):
        assert vit.preprocess(Image.new(mode, (20, 30))).shape == (3, 16, 16)
    assert repr(vit.preprocess) == repr(again.preprocess)


@pytest.mark.usefixtures("small_timm")
def test_positions_are_interpolated_as_timm_does() -> None:
    vit = HookedViT.from_timm(NAME, image_size=24)
    assert (vit.cfg.image_size, vit.cfg.patch_grid) == ((24, 24), (6, 6))
    assert vit(vit.preprocess(Image.new("RGB", (40, 40)))[None]).shape == (1, 16)


@pytest.mark.usefixtures("small_timm")
@pytest.mark.parametrize("fault", ["missing tensor", "extra tensor", "other width", "text"])
def test_other_weights_are_refused(fault: str, tmp_path: Path) -> None:
    options = {"embed_dim": 32} if fault == "other width" else {}
    state = tiny_timm(NAME, num_classes=1000, **options).state_dict()
    if fault == "missing tensor":
        del state["norm.weight"]
    elif fault == "extra tensor":
        state["extra"] = torch.zeros(1)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    if fault == "text":
        path.write_text("no weights")
    with pytest.raises(InputError, match=r"weights\.pth") as caught:
        HookedViT.from_timm(NAME, str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "pretrained", "said"),
    [
        ("timm:no_such_vit", None, "timm.list_models"),
        (f"timm:{NAME}", "no_such_tag", "no_such_tag"),
        (f"timm:{NAME}:one", "another", "names a checkpoint"),
    ],
)
def test_unknown_names_are_refused(model: str, pretrained: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        HookedViT.load(model, pretrained)


def test_names_with_checkpoints() -> None:
    assert split_name("timm:a:b", None) == ("timm:a", "b")
    assert split_name("timm:a", "b") == ("timm:a", "b")
    assert split_name("timm:a", None) == ("timm:a", None)
    assert split_name("ViT-B-32", "openai") == ("ViT-B-32", "openai")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_base_patch14_reg4_dinov2"])
def test_equals_timm_at_full_size(name: str) -> None:
    model = timm.create_model(name, depth=4, img_size=224).eval().requires_grad_(False)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    assert torch.equal(HookedViT(model)(images), expected)
