"""Readouts on the command line: what was read with is said, and what is not there is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import random_clt, tiny_timm
from PIL import Image

from vit_clt.cli import main
from vit_clt.hooks import HookedViT


@pytest.fixture(scope="module")
def timm_vit() -> HookedViT:
    return HookedViT(tiny_timm("vit_small_patch16_224"))


@pytest.fixture(scope="module")
def folders(timm_vit: HookedViT, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A CLT of a tiny timm model, the model's weights, and images of 2 and of 5 classes."""
    place = tmp_path_factory.mktemp("readouts")
    generator = np.random.default_rng(0)
    for name, n_classes in (("two", 2), ("five", 5)):
        for split in ("train", "test"):
            for c in range(n_classes):
                folder = place / name / split / f"class {c}"
                folder.mkdir(parents=True)
                for i in range(6):
                    pixels = generator.integers(0, 120, (16, 16, 3)) + 25 * c
                    Image.fromarray(pixels.astype("uint8")).save(folder / f"{i}.png")
    random_clt(timm_vit).save_pretrained(place / "clt")
    return {name: place / name for name in ("two", "five", "clt")}


@pytest.fixture
def timm_on_the_command_line(timm_vit: HookedViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model timm:tiny`, which no list of models has."""
    import timm

    preprocess = timm.data.create_transform((3, 16, 16), crop_pct=1.0)
    vit = HookedViT(timm_vit.model, model="timm:tiny", preprocess=preprocess)
    monkeypatch.setattr(HookedViT, "load", lambda *args, **kwargs: vit)


START = ("--model", "timm:tiny", "--pretrained", "random")


@pytest.mark.usefixtures("timm_on_the_command_line", "offline_datasets")
@pytest.mark.parametrize(
    ("data", "more", "expected"),
    [
        ("two", [], "linear (10 images of"),
        ("five", [], "head (5 classes)"),
        ("five", ["--readout", "linear", "--seed", "7"], "linear (24 images of"),
        ("two", ["--readout", "linear", "--train-limit", "11"], "linear (9 images of"),
    ],
)
def test_cascade_says_how_classes_were_read(
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    data: str,
    more: list[str],
    expected: str,
):
    images = ["--data", f"imagefolder:{folders[data]}"]
    out = tmp_path / "out"
    args = ["cascade", *START, "--clt", str(folders["clt"]), *images, *more, "--layers", "1"]
    assert main([*args, "--out", str(out)]) == 0
    context = json.loads((out / "metrics.json").read_text())["context"]
    assert expected in context["readout"]
    assert context["readout"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("ablate", []),
        ("causal", []),
        ("faithfulness", ["--layers", "7"]),
        ("steer", ["--feature", "7:3", "--values", "0", "--random", "1"]),
    ],
)
def test_commands_read_linearly_when_asked(
    digits_clt: Path, tmp_path: Path, command: str, more: list[str]
):
    few = ["--limit", "12", "--readout", "linear", "--train-limit", "100"]
    args = [command, "--clt", str(digits_clt), *few, *more, "--out", str(tmp_path / "out")]
    assert main(args) == 0
    context = json.loads((tmp_path / "out" / "metrics.json").read_text())["context"]
    assert context["readout"].startswith("linear (80 images of digits (train); ")


def test_the_steering_search_reads_with_the_text_tower(
    digits_clt: Path, refused: Callable[..., str]
):
    search = ["steer", "--clt", digits_clt, "--search", "three", "--limit", "8"]
    assert "--readout is given with --search" in refused(*search, "--readout", "linear")


@pytest.mark.usefixtures("timm_on_the_command_line", "offline_datasets")
def test_features_of_a_model_without_a_text_tower_have_no_effects(
    folders: dict[str, Path], tmp_path: Path
):
    out, data = tmp_path / "out", f"imagefolder:{folders['two']}"
    args = ["features", *START, "--clt", str(folders["clt"]), "--data", data, "--layers", "2"]
    assert main([*args, "--count", "1", "--top", "2", "--out", str(out)]) == 0
    assert json.loads((out / "metrics.json").read_text())["context"]["readout"] is None


@pytest.mark.usefixtures("timm_on_the_command_line", "offline_datasets")
def test_readouts_that_are_not_there(folders: dict[str, Path], refused: Callable[..., str]):
    start = ["cascade", *START, "--clt", folders["clt"], "--data"]
    two, five = (f"imagefolder:{folders[name]}" for name in ("two", "five"))
    for options, sentence in (
        ([two, "--readout", "text"], "has no text tower"),
        ([two, "--readout", "head"], '--readout is "head", which has 5 classes where the data'),
        ([two, "--split", "train", "--readout", "linear"], "the images trained on; expected held"),
        ([five, "--train-limit", "9"], "--train-limit is given, which the readout does not use"),
        ([five, "--templates", "single"], "--templates is given, which the readout does not use"),
        ([two, "--train-limit", "6"], "show one class; expected two"),
    ):
        assert sentence in refused(*start, *options)
