"""ViTs of others: no code runs, no further model is fetched, and sizes are those of the weights."""

from __future__ import annotations

import copy
import json
import resource
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from assertions import one_sentence
from builders import TINY, TINY_TIMM, tiny_clip, tiny_timm_clip
from safetensors.torch import load_file, save_file

from vit_clt import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.teacher_files import CONFIG_FILE, WEIGHTS_FILE, unasked
from vit_clt.hooks.tokenizers import MissingTokenizer, load_tokenizer
from vit_clt.teachers import SHIPPED
from vit_clt.transcoder.config import TeacherIdentity

HOOKS = ("blocks.{l}.ln2.hook_out", "blocks.{l}.hook_mlp_out", "0" * 64)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    save_file(tiny_clip().state_dict(), folder / WEIGHTS_FILE)
    configure(folder)
    return folder


def configure(folder: Path, **changes: Any) -> None:
    """Write the configuration of `tiny_clip`, with changes as {"text_cfg.layers": 3}."""
    document = {"model_cfg": copy.deepcopy(TINY), "preprocess_cfg": {}}
    for name, value in changes.items():
        *parts, last = name.split(".")
        inside: Any = document
        for part in parts:
            inside = inside[part]
        inside[last] = value
    (folder / CONFIG_FILE).write_text(json.dumps(document))


def load(folder: Path) -> HookedViT:
    return HookedViT.from_open_clip(f"local-dir:{folder}")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    one_sentence(error)


# ---- code and further models ----------------------------------------------------------------


def with_code(folder: Path) -> Path:
    """Put a tokenizer into a folder whose Python makes a file; the place of that file."""
    canary = folder / "executed"
    (folder / "words.py").write_text(
        f"open({str(canary)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizer\n"
        "class Words(PreTrainedTokenizer):\n    pass\n"
    )
    config = {"auto_map": {"AutoTokenizer": ["words.Words", None]}, "tokenizer_class": "Words"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return canary


def test_no_option_of_a_tokenizer_lets_code_run(teacher: Path) -> None:
    canary = with_code(teacher)
    configure(
        teacher,
        **{
            "model_cfg.text_cfg.hf_tokenizer_name": "x",
            "model_cfg.text_cfg.tokenizer_kwargs": {"trust_remote_code": True},
        },
    )
    refused(teacher, 'tokenizer_kwargs has "trust_remote_code"')
    tokenizer = load_tokenizer(f"local-dir:{teacher}")  # the check left out
    assert isinstance(tokenizer, MissingTokenizer)
    assert not canary.exists()


def test_code_beside_a_tokenizer_is_not_run(teacher: Path) -> None:
    canary = with_code(teacher)
    configure(teacher, **{"model_cfg.text_cfg.hf_tokenizer_name": "x"})
    vit = load(teacher)
    assert isinstance(vit.tokenizer, MissingTokenizer)
    with pytest.raises(InputError, match='tokenizer "x" of model') as error:
        vit.tokenizer(["a cat"])
    assert "contains custom code" in str(error.value)
    assert not canary.exists()


FURTHER: dict[str, dict[str, Any]] = {
    "text tower of the Hub": {"text_cfg.hf_model_name": "someone/model"},
    "its weights": {"text_cfg.hf_model_pretrained": True},
    "vision tower of the Hub": {"vision_cfg.timm_model_name": "hf-hub:someone/model"},
    "vision tower of a folder": {"vision_cfg.timm_model_name": "local-dir:/somewhere"},
    "a dictionary to read": {"text_cfg.tokenizer_kwargs": {"bpe_path": "/etc/passwd"}},
    "an unknown option": {"text_cfg.run": "this"},
    "an unknown part": {"plugins": ["this"]},
    "another class": {"text_cfg.tokenizer_kwargs": {"tokenizer_type": "x"}},
}


@pytest.mark.parametrize("changes", FURTHER.values(), ids=FURTHER)
def test_only_known_options_are_read(
    teacher: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*args: object, **kwargs: object) -> None:
        pytest.fail("began to load")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", begin)
    configure(teacher, **{f"model_cfg.{name}": value for name, value in changes.items()})
    refused(teacher, "not among the options read|timm has no model")


def test_open_clips_own_options_of_tokenizers_are_known(teacher: Path) -> None:
    known = {"clean": "canonicalize", "strip_sep_token": True}
    configure(teacher, **{"model_cfg.text_cfg.tokenizer_kwargs": {"clean": "canonicalize"}})
    assert load(teacher).tokenizer(["a cat"]).shape == (1, 8)
    used = [open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()]
    assert {key for each in used for key in each.get("tokenizer_kwargs", {})} <= known.keys()


def test_only_safetensors_are_read_from_a_folder(teacher: Path) -> None:
    torch.save(load_file(teacher / WEIGHTS_FILE), teacher / "open_clip_pytorch_model.bin")
    (teacher / WEIGHTS_FILE).unlink()
    refused(teacher, f"expected a folder holding {CONFIG_FILE} and {WEIGHTS_FILE}")


# ---- sizes and numbers ----------------------------------------------------------------------

BOMBS: dict[str, tuple[str, Any]] = {
    "no layers": ("vision_cfg.layers", 0),
    "layers": ("vision_cfg.layers", 10**9),
    "some layers": ("vision_cfg.layers", 200),
    "half a layer": ("vision_cfg.layers", 2.5),
    "a ResNet's layers": ("vision_cfg.layers", [3, 4, 6, 3]),
    "no width": ("vision_cfg.width", 0),
    "width": ("vision_cfg.width", 16_000),
    "head width": ("vision_cfg.head_width", 1.5),
    "no head width": ("vision_cfg.head_width", 0),
    "image": ("vision_cfg.image_size", 10**6),
    "a large image": ("vision_cfg.image_size", [4000, 4000]),
    "a long image": ("vision_cfg.image_size", [12, 12, 12]),
    "patch": ("vision_cfg.patch_size", 0),
    "a large patch": ("vision_cfg.patch_size", 4000),
    "ratio": ("vision_cfg.mlp_ratio", 10**9),
    "a ratio below 0": ("text_cfg.mlp_ratio", -1),
    "vocabulary": ("text_cfg.vocab_size", 10**12),
    "some vocabulary": ("text_cfg.vocab_size", 10**6),
    "context": ("text_cfg.context_length", 10**6),
    "text layers": ("text_cfg.layers", 256),
    "embedding": ("embed_dim", 10**9),
    "a text": ("vision_cfg.width", "16"),
    "true": ("vision_cfg.layers", True),
    "a list": ("vision_cfg", []),
    "nothing": ("text_cfg", None),
    "kind of pooling": ("vision_cfg.pool_type", 3),
}


@pytest.mark.parametrize(("name", "value"), BOMBS.values(), ids=BOMBS)
def test_no_model_is_made_of_sizes_that_the_weights_do_not_have(
    teacher: Path, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*args: object, **kwargs: object) -> None:
        pytest.fail("began to load")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", begin)
    configure(teacher, **{f"model_cfg.{name}": value})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(teacher, CONFIG_FILE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize("change", [{"mean": "x"}, {"std": [None]}, {"size": {}}, {"mode": 1}])
def test_preprocessing_of_other_types_is_refused(teacher: Path, change: dict[str, Any]) -> None:
    configure(teacher, preprocess_cfg=change)
    refused(teacher, CONFIG_FILE)


@pytest.mark.parametrize(
    "name",
    ["logit_scale", "text_projection", "token_embedding.weight", "visual.proj", "ln_final.bias"],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(teacher: Path, name: str, value: float) -> None:
    tensors = load_file(teacher / WEIGHTS_FILE)
    tensors[name].view(-1)[0] = value
    save_file(tensors, teacher / WEIGHTS_FILE)
    refused(teacher, f"{name} holds NaN or infinite values")


def test_a_logit_scale_beyond_numbers_is_named(teacher: Path) -> None:
    tensors = load_file(teacher / WEIGHTS_FILE)
    tensors["logit_scale"].fill_(1000.0)
    save_file(tensors, teacher / WEIGHTS_FILE)
    refused(teacher, r"exp\(logit_scale\) holds NaN or infinite values")


def test_weights_of_integers_are_named(teacher: Path) -> None:
    tensors = load_file(teacher / WEIGHTS_FILE)
    tensors["visual.proj"] = tensors["visual.proj"].long()
    save_file(tensors, teacher / WEIGHTS_FILE)
    refused(teacher, r"visual\.proj is I64; expected F32")


# ---- the ViT that a CLT names ---------------------------------------------------------------


def identity(model: str, pretrained: str | None = None) -> TeacherIdentity:
    return TeacherIdentity(model, pretrained, "QuickGELU", *HOOKS)


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_vits_load_unasked(model: str) -> None:
    assert unasked(identity(model)) == (model, None)


def test_open_clips_own_names_and_tags_load_unasked() -> None:
    assert unasked(identity("ViT-B-32-quickgelu", "openai")) == ("ViT-B-32-quickgelu", "openai")
    # weights that the user names take the place of the CLT's
    assert unasked(identity("ViT-B-32", "/theirs.pt"), "/mine.pt") == ("ViT-B-32", "/mine.pt")


@pytest.mark.parametrize(
    ("model", "pretrained", "field"),
    [
        ("local-dir:/somewhere", None, "model"),
        ("local-dir:relative", None, "model"),
        ("hf-hub:someone/model", None, "model"),
        ("someone/model", None, "model"),
        ("digits/../x", None, "model"),
        ("x" * 10_000, None, "model"),
        ("ViT-B-32-quickgelu", "/etc/passwd", "pretrained"),
        ("ViT-B-32-quickgelu", "no-such-tag", "pretrained"),
        ("ViT-B-32-quickgelu", "https://example.org/weights.pt", "pretrained"),
    ],
)
def test_every_other_vit_must_be_named(model: str, pretrained: str | None, field: str) -> None:
    with pytest.raises(InputError, match="is missing; the CLT was trained on") as error:
        unasked(identity(model, pretrained))
    assert error.value.field == field
    assert (pretrained or model)[:100] in one_sentence(error)
    assert len(str(error.value)) < 400


# ---- refused before the weights are fetched -------------------------------------------------


def on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the Hub hold the files of a folder; the list gets the name of each file it gives."""
    given: list[str] = []

    def download(model_id: str, filename: str = WEIGHTS_FILE, **_: Any) -> str:
        given.append(filename)
        return str(folder / filename)

    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", download)
    return given


def test_a_model_of_the_hub_needs_no_tag(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_hub(teacher, monkeypatch)
    vit = HookedViT.from_open_clip("hf-hub:me/tiny")
    assert vit.identity().weights_sha256 == load(teacher).identity().weights_sha256
    with pytest.raises(InputError, match="carries its own weights"):
        HookedViT.from_open_clip("hf-hub:me/tiny", "random")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_cfg.vision_cfg.layers": [1, 1, 1, 1]}, "layers"),
        ({"model_cfg.vision_cfg.timm_model_name": "resnet10t"}, "ResNet"),
        ({"model_cfg.vision_cfg.timm_model_name": "hf-hub:me/other"}, "timm has no model"),
        ({"model_cfg.vision_cfg.pool_type": "none"}, "an embedding for every token"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_fetched(
    changes: dict[str, Any], said: str, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(teacher, **changes)
    given = on_the_hub(teacher, monkeypatch)
    with pytest.raises(InputError, match=said) as error:
        HookedViT.from_open_clip("hf-hub:me/tiny")
    one_sentence(error)
    assert given == [CONFIG_FILE]


def test_a_folder_with_a_timm_tower_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "vit_base_patch16_siglip_224"
    clip = tiny_timm_clip(name, "map", "none")
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **TINY_TIMM))
    text = {**TINY["text_cfg"], "width": 16}
    vision = {"image_size": 16, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    model["init_logit_bias"] = -10.0
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"model_cfg": model}))
    save_file(clip.state_dict(), tmp_path / WEIGHTS_FILE)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load(tmp_path)(images), clip.encode_image(images))
