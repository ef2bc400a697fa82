"""Random weights of a seed: the same ViT again, also for a later study of a CLT trained on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from builders import TINY, random_clt

from vit_clt import InputError
from vit_clt.cli import main
from vit_clt.hooks import HookedViT
from vit_clt.hooks.teacher_files import unasked
from vit_clt.hooks.towers.names import random_seed

NAME = "tiny-random-clip"
TIMM = "timm:vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip lists a small model."""
    factory = open_clip.factory
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    (tmp_path / f"{NAME}.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / f"{NAME}.json")


@pytest.mark.parametrize("model", [NAME, TIMM])
def test_a_seed_draws_the_same_weights(model: str) -> None:
    vits = [HookedViT.load(model, weights) for weights in ("random", "random:0", "random:7")]
    names, hashes = zip(
        *((vit.cfg.pretrained, vit.identity().weights_sha256) for vit in vits), strict=True
    )
    assert names == ("random:0", "random:0", "random:7")
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_users_own_draws_go_on() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    HookedViT.load(NAME, "random:7")
    assert torch.equal(torch.rand(4), expected)


def test_what_names_a_seed() -> None:
    assert random_seed(None) is None
    assert random_seed("openai") is None
    assert random_seed("randomly.pt") is None
    assert random_seed("random") == 0
    assert random_seed("random:12") == 12
    for wrong in ("random:", "random:-1", "random:x", "random:1.5"):
        with pytest.raises(InputError, match=r"pretrained is .*; expected the number of a seed"):
            random_seed(wrong)


@pytest.mark.parametrize("model", [NAME, TIMM])
def test_a_clt_names_its_random_teacher(model: str) -> None:
    teacher = HookedViT.load(model, "random:7").identity()
    assert unasked(teacher) == (model, "random:7")


def test_a_study_rebuilds_the_random_teacher(tmp_path: Path) -> None:
    vit = HookedViT.load(NAME, "random:5")
    clt = random_clt(vit)
    clt.config = replace(clt.config, teacher=vit.identity())
    clt.save_pretrained(tmp_path / "clt")
    args = ["reconstruct", "--clt", str(tmp_path / "clt"), "--data", "digits", "--limit", "4"]
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    # the fingerprint guards it
    other = ["--model", NAME, "--pretrained", "random:6", "--out", str(tmp_path / "other")]
    assert main([*args, *other]) == 2
    assert not (tmp_path / "other").exists()
