"""Weights as people have them: whatever wraps them is taken off and said, or one sentence."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from assertions import one_sentence
from builders import TINY, TINY_TIMM, tiny_clip, tiny_timm
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.towers.torchscript import read_torchscript
from vit_clt.hooks.towers.weights import read_weights

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip lists a small model with both activation functions, and one with GELU alone."""
    factory = open_clip.factory
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    folder = tmp_path / "listed"
    folder.mkdir()
    for name, quick in (("tiny", False), ("tiny-quickgelu", True), ("only", False)):
        (folder / f"{name}.json").write_text(json.dumps({**TINY, "quick_gelu": quick}))
    open_clip.add_model_config(folder)


@pytest.fixture
def clip() -> Any:
    return tiny_clip(seed=4).requires_grad_(False)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def begin(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(folder: Path, content: object) -> str:
    path = folder / "weights.pt"
    torch.save(content, path)
    return str(path)


# ---- wrapped ------------------------------------------------------------------------------------

OTHER = {name: torch.zeros_like(t) for name, t in tiny_clip().state_dict().items()}
WRAPPED: dict[str, tuple[Callable[[State], object], str]] = {
    "torch.compile": (lambda s: begin(s, "_orig_mod."), '"_orig_mod."'),
    "DDP and torch.compile": (
        lambda s: {"state_dict": begin(s, "module._orig_mod."), "epoch": 3},
        '"state_dict.module._orig_mod."',
    ),
    "Lightning": (lambda s: {"state_dict": begin(s, "model.")}, '"state_dict.model."'),
    "a dict": (lambda s: {"model": s, "args": argparse.Namespace(lr=1)}, '"model."'),
    "EMA": (lambda s: {"state_dict": OTHER, "state_dict_ema": s}, '"state_dict_ema."'),
    "EMA of a model": (lambda s: {"model": OTHER, "model_ema": s}, '"model_ema."'),
    "an optimiser beside them": (
        lambda s: {"clip": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        '"clip."',
    ),
    "a head": (lambda s: {**s, "head.weight": torch.zeros(3, 12)}, "left out: 1 .*head.weight"),
    "the bias of a SigLIP": (lambda s: {**s, "logit_bias": torch.tensor(-10.0)}, "logit_bias"),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_wrapped_weights_load_exactly_and_it_is_said(
    form: str, clip: Any, tmp_path: Path, images: Tensor
) -> None:
    wrap, said = WRAPPED[form]
    with pytest.warns(UserWarning, match=f"weights.pt: .*{said}"):
        vit = HookedViT.from_open_clip("tiny-quickgelu", saved(tmp_path, wrap(clip.state_dict())))
    assert torch.equal(vit(images), clip.encode_image(images))
    assert torch.equal(vit.logit_scale, clip.logit_scale.exp())


@pytest.mark.parametrize("prefix", ["visual.", "", "state_dict.model.visual."])
def test_a_vision_tower_alone_loads_without_a_text_tower(
    prefix: str, clip: Any, tmp_path: Path, images: Tensor
) -> None:
    state = begin(clip.visual.state_dict(), prefix)
    with pytest.warns(UserWarning, match="no text tower"):
        vit = HookedViT.from_open_clip("tiny-quickgelu", saved(tmp_path, state))
    assert torch.equal(vit(images), clip.encode_image(images))
    assert vit.tokenizer is None
    with pytest.raises(InputError, match="no text tower"):
        vit.encode_text(torch.zeros(1, 8, dtype=torch.long))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module._orig_mod."])
def test_a_tower_that_is_wrapped_by_itself_loads_exactly(
    wrapper: str, clip: Any, tmp_path: Path, images: Tensor
) -> None:
    state = {n.replace("visual.", f"visual.{wrapper}"): t for n, t in clip.state_dict().items()}
    vit = HookedViT.from_open_clip("tiny-quickgelu", saved(tmp_path, state))
    assert torch.equal(vit(images), clip.encode_image(images))


def test_shards_of_safetensors_load_exactly(clip: Any, tmp_path: Path, images: Tensor) -> None:
    folder, state = tmp_path / "shards", clip.state_dict()
    folder.mkdir()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in set(files.values()):
        save_file({n: t for n, t in state.items() if files[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    vit = HookedViT.from_open_clip("tiny-quickgelu", str(folder))
    assert torch.equal(vit(images), clip.encode_image(images))
    index.write_text(json.dumps({"weight_map": {"x": "../listed/model.safetensors"}}))
    with pytest.raises(InputError, match="other folders"):
        read_weights(folder)
    index.unlink()
    with pytest.raises(InputError, match="2 safetensors files"):
        read_weights(folder)


def test_stretched_positions_are_said(clip: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, tiny_clip(image_size=24).state_dict())
    with pytest.warns(UserWarning, match=r"positional_embedding is stretched from 37 positions"):
        HookedViT.from_open_clip("tiny-quickgelu", path)


# ---- refused ------------------------------------------------------------------------------------


class Arbitrary:
    """An object that a safe unpickler must refuse."""


REFUSED: dict[str, tuple[Callable[[State], object], str]] = {
    "a missing tensor": (
        lambda s: {n: t for n, t in s.items() if n != "visual.proj"},
        r"lacks 1 of .*\(visual.proj\) and has 0 unknown",
    ),
    "half a text tower": (
        lambda s: {n: t for n, t in s.items() if n != "token_embedding.weight"},
        r"lacks 1 of .*token_embedding",
    ),
    "one layer more": (
        lambda s: {**s, "visual.transformer.resblocks.9.ln_1.bias": torch.zeros(16)},
        "has 1 unknown",
    ),
    "LayerScale": (lambda s: {**s, "visual.ls.gamma": torch.ones(16)}, "has 1 unknown"),
    "another model": (
        lambda s: {"conv.weight": torch.zeros(3)},
        "lacks 56 of the 56 tensors .* has 1 unknown",
    ),
    "another width": (
        lambda s: tiny_clip(width=32).state_dict(),
        r"visual\.\S+ has shape .*; expected",
    ),
    "integers": (
        lambda s: {**s, "visual.proj": s["visual.proj"].to(torch.int8)},
        "visual.proj is torch.int8",
    ),
    "NaN": (lambda s: {**s, "visual.proj": s["visual.proj"] * float("nan")}, "NaN"),
    "two models": (lambda s: {"a": s, "b": s}, r"several models, under a\., b\."),
    "an object": (lambda s: {"state_dict": s, "args": Arbitrary()}, "a Python object, .*Arbitrary"),
    "a list": (lambda s: [1, 2], "it holds a list"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_does_not_fill_the_model_is_refused(form: str, clip: Any, tmp_path: Path) -> None:
    change, said = REFUSED[form]
    path = saved(tmp_path, change(clip.state_dict()))
    with pytest.raises(InputError, match=said) as error:
        HookedViT.from_open_clip("tiny-quickgelu", path)
    assert path in one_sentence(error)


# ---- TorchScript --------------------------------------------------------------------------------


def archive(model: nn.Module, folder: Path, *inputs: Tensor) -> Path:
    path = folder / "archive.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch itself advises against TorchScript
        torch.jit.save(torch.jit.trace(model, inputs), path)
    return path


@pytest.mark.parametrize("half", [False, True])
def test_a_torchscript_archive_says_what_it_is(
    half: bool, clip: Any, tmp_path: Path, images: Tensor
) -> None:
    clip = clip.half().float() if half else clip
    path = archive(clip, tmp_path, images, torch.zeros(2, 8, dtype=torch.long))
    vit = HookedViT.from_open_clip("tiny-quickgelu", str(path))
    assert torch.equal(vit(images), clip.encode_image(images))
    with pytest.raises(
        InputError, match=r'the program in .* expect QuickGELU: use "tiny-quickgelu"'
    ):
        HookedViT.from_open_clip("tiny", str(path))


def test_tensors_of_torchscript_are_those_of_torch(tmp_path: Path) -> None:
    layer = nn.Sequential(nn.Linear(3, 4).half(), nn.GELU())
    layer.register_buffer("count", torch.tensor(7))
    layer.register_buffer("none", torch.zeros(0))
    path = archive(layer, tmp_path, torch.zeros(1, 3).half())
    tensors, classes = read_torchscript(path)
    expected = layer.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(
        torch.equal(tensors[n], t) and tensors[n].dtype == t.dtype for n, t in expected.items()
    )
    assert classes == {"Sequential", "Linear", "GELU"}


# ---- GELU or QuickGELU --------------------------------------------------------------------------


def test_a_file_that_does_not_say_its_activation_is_asked_for(
    clip: Any, tmp_path: Path, images: Tensor
) -> None:
    path = saved(tmp_path, clip.state_dict())
    with pytest.raises(InputError, match=r'gelu is missing; .*the model "tiny-quickgelu"') as error:
        HookedViT.from_open_clip("tiny", path)
    assert path in one_sentence(error)
    assert HookedViT.from_open_clip("tiny-quickgelu", path).cfg.activation == "QuickGELU"
    vit = HookedViT.load("tiny", path, gelu="gelu")
    assert vit.cfg.activation == "GELU"
    assert not torch.equal(vit(images), clip.encode_image(images))
    # a model of one kind alone is what its name says
    assert HookedViT.from_open_clip("only", path).cfg.activation == "GELU"


def test_what_the_user_says_decides(clip: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, clip.state_dict())
    with pytest.raises(InputError, match=r'gelu="quickgelu" says .*use "tiny-quickgelu"'):
        HookedViT.from_open_clip("tiny", path, gelu="quickgelu")
    with pytest.raises(InputError, match='expect GELU: use "tiny"'):
        HookedViT.from_open_clip("tiny-quickgelu", path, gelu="gelu")
    with pytest.raises(InputError, match="use a model with that function"):
        HookedViT.from_open_clip("only", path, gelu="quickgelu")


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("beside", ["configuration", "params", "params, forced"])
def test_a_file_beside_the_weights_says_their_activation(
    beside: str, quick: bool, clip: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    if beside == "configuration":
        config = {"model_cfg": {**TINY, "quick_gelu": quick}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    else:
        forced = quick and "forced" in beside
        name = "tiny-quickgelu" if quick and not forced else "tiny"
        text = f"batch_size: 64\nforce_quick_gelu: {forced}\nmodel: {name}\n"
        (folder.parent / "params.txt").write_text(text)
    path = saved(folder, clip.state_dict())
    right, wrong = ("tiny-quickgelu", "tiny") if quick else ("tiny", "tiny-quickgelu")
    assert HookedViT.from_open_clip(right, path).cfg.model == right
    with pytest.raises(InputError, match=f'use "{right}"'):
        HookedViT.from_open_clip(wrong, path, gelu="gelu")


# ---- timm ---------------------------------------------------------------------------------------

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def small_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: create(name, **{**TINY_TIMM, **options})
    )


@pytest.mark.usefixtures("small_timm")
@pytest.mark.parametrize("n_classes", [0, 5])
def test_a_finetuned_timm_model_keeps_its_own_classifier(n_classes: int, tmp_path: Path) -> None:
    model = tiny_timm(NAME, num_classes=n_classes)
    state = {"model": begin(model.state_dict(), "backbone."), "epoch": 1}
    said = '"model.backbone." is taken off' + ("" if n_classes else ".*no classifier")
    with pytest.warns(UserWarning, match=said):
        vit = HookedViT.from_timm(NAME, saved(tmp_path, state))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(
        vit(images), model.forward_head(model.forward_features(images), pre_logits=True)
    )
    assert (vit.tower.classifier is None) == (n_classes == 0)


@pytest.mark.usefixtures("small_timm")
def test_what_only_training_needs_is_left_out(tmp_path: Path) -> None:
    state = {**tiny_timm(NAME).state_dict(), "decoder.weight": torch.zeros(2, 2)}
    with pytest.warns(UserWarning, match=r"left out: 1 .*\(decoder.weight\)"):
        HookedViT.from_timm(NAME, saved(tmp_path, state))
