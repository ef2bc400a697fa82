"""A tokenizer out of reach: images still work, texts are refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from builders import TINY, tiny_clip
from safetensors.torch import save_file

from vit_clt import InputError, ZeroShot
from vit_clt.hooks import HookedViT
from vit_clt.hooks.tokenizers import MissingTokenizer, load_tokenizer


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def config(tokenizer: str) -> dict[str, object]:
    return {**TINY, "text_cfg": {**TINY["text_cfg"], "hf_tokenizer_name": tokenizer}}


def refused(vit: HookedViT, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ZeroShot(vit, ["cat"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_hub_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny-with-hub-words.json").write_text(json.dumps(config("someone/words")))
    open_clip.add_model_config(tmp_path / "tiny-with-hub-words.json")
    vit = HookedViT.from_open_clip("tiny-with-hub-words")
    assert vit(torch.zeros(2, 3, 12, 12)).shape == (2, 12)
    refused(vit, 'tokenizer "someone/words" of model "tiny-with-hub-words" cannot be loaded: .')


def test_local_folder_without_its_tokenizer_is_named(tmp_path: Path) -> None:
    clip = tiny_clip()
    document = {"model_cfg": config("someone/words"), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    weights = {name: value.contiguous() for name, value in clip.state_dict().items()}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    vit = HookedViT.from_open_clip(f"local-dir:{tmp_path}")
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vit(images), HookedViT(clip)(images))
    refused(vit, f'tokenizer "someone/words" of model "local-dir:{tmp_path}" cannot be loaded: .')


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-L-14-CLIPA"])
def test_open_clips_own_models_with_hub_tokenizers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    tokenizer = load_tokenizer(name)
    assert isinstance(tokenizer, MissingTokenizer)
    assert tokenizer.name == open_clip.get_model_config(name)["text_cfg"]["hf_tokenizer_name"]


def test_tokenizers_that_need_no_network_are_open_clips_own() -> None:
    assert isinstance(load_tokenizer("ViT-B-32-quickgelu"), open_clip.SimpleTokenizer)
