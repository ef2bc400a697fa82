"""Names of ViTs, checked without the libraries that have them."""

from __future__ import annotations

import sys
from pathlib import Path

import open_clip
import pytest
import timm

from vit_clt import InputError
from vit_clt.hooks.towers.known_names import check_name


@pytest.fixture(autouse=True)
def not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("open_clip", "timm"):
        monkeypatch.delitem(sys.modules, library)


def test_every_name_of_open_clip_is_known() -> None:
    folder = Path(open_clip.__file__).parent / "model_configs"
    for path in folder.glob("*.json"):
        check_name(path.stem, "random")
    check_name("ViT-B/32", "openai")


def test_every_tag_of_open_clip_is_known() -> None:
    for model, tag in {tag: (model, tag) for model, tag in open_clip.list_pretrained()}.values():
        check_name(model, tag)


@pytest.mark.parametrize("name", [*timm.list_models("*beit*")[:3], "vit_small_patch14_dinov2"])
def test_names_of_timm_are_known(name: str) -> None:
    check_name(f"timm:{name}", "random")
    for tag in timm.list_pretrained(f"{name}.*"):
        check_name(f"timm:{tag.replace('.', ':', 1)}", None)


@pytest.mark.parametrize(
    ("model", "pretrained", "sentence"),
    [
        ("ViT-B-33", "openai", r'model is "ViT-B-33"; expected .* mean "ViT-B-32"\?\)'),
        ("timm:vit_bse_patch16_224", "random", r'did you mean "timm:vit_base_patch16_224"\?'),
        ("digits", "random", 'pretrained is "random"; model "digits" carries its own weights'),
        ("hf:someone/vit", "x", "carries its own weights, expected none"),
        ("ViT-B-32", None, "pretrained is missing"),
        ("ViT-B-32", "./absent", "pretrained is ./absent; found no such file"),
        ("ViT-B-32", "opanai", r'pretrained is "opanai"; expected .* \(did you mean "openai"\?\)'),
        ("timm:vit_small_patch14_dinov2", "lvd142", r'did you mean "lvd142m"\?'),
        ("timm:vit_base_patch16_224:tag", "other", "names a checkpoint, expected none"),
        ("local-dir:absent", None, "expected a folder holding open_clip_config.json and open"),
        ("hf:out/absent", None, "expected a folder holding config.json"),
    ],
)
def test_refused(model: str, pretrained: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_name(model, pretrained)


@pytest.mark.parametrize("model", ["hf:someone/vit", "hf:vit", "hf-hub:someone/vit", "adding"])
def test_names_that_only_their_library_knows(model: str) -> None:
    check_name(model, None)
