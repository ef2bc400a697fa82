"""A CLT of others says which ViT it was trained on, and does not decide what is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vit_clt import CrossLayerTranscoder
from vit_clt.cli import main
from vit_clt.teachers import shipped_teacher


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """The shipped ViT in a folder of its own."""
    folder = tmp_path / "somewhere"
    shutil.copytree(str(shipped_teacher("digits")).removeprefix("local-dir:"), folder)
    return folder


def of_teacher(digits_clt: Path, model: str, folder: Path) -> Path:
    """A CLT that names `model`."""
    clt = CrossLayerTranscoder.from_pretrained(digits_clt)
    vit = json.loads((digits_clt / "config.json").read_text())["teacher"]
    assert vit is None, "an untrained CLT names none"
    from vit_clt.hooks import HookedViT

    identity = replace(HookedViT.from_open_clip("digits").identity(), model=model)
    clt.config = replace(clt.config, teacher=identity)
    clt.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", ["reconstruct", "contributions", "features", "retrieve"])
def test_a_folder_that_a_clt_names_is_not_read(
    command: str,
    teacher: Path,
    digits_clt: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clt = of_teacher(digits_clt, f"local-dir:{teacher}", tmp_path / "clt")

    def read(*args: object, **kwargs: object) -> None:
        pytest.fail("loaded a ViT that only the CLT names")

    monkeypatch.setattr("vit_clt.hooks.HookedViT.from_open_clip", read)
    args = ["--clt", str(clt), "--data", "digits", "--limit", "4", "--out", str(tmp_path / "out")]
    assert main([command, *args]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f'--model is missing; the CLT was trained on "local-dir:{teacher}"')
    assert not (tmp_path / "out").exists()


def test_the_same_weights_in_another_place_are_accepted(
    teacher: Path, digits_clt: Path, tmp_path: Path
) -> None:
    clt = of_teacher(digits_clt, "local-dir:a/path/of/another/folder", tmp_path / "clt")
    args = ["reconstruct", "--clt", str(clt), "--data", "digits", "--limit", "4"]
    model = ["--model", f"local-dir:{teacher}"]
    assert main([*args, *model, "--out", str(tmp_path / "out")]) == 0
