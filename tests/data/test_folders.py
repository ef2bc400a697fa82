"""Folders of images: which folder is a split, which a class, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit_clt import InputError, load_data
from vit_clt.data.images import ImageData
from vit_clt.data.splits import named_split
from vit_clt.hooks import HookedViT


def draw(path: Path, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def labels(data: ImageData) -> list[int]:
    return data.batch(range(len(data)))[1].tolist()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_folder_named_like_a_split_is_a_class(
    digits_vit: HookedViT, tmp_path: Path, split: str
) -> None:
    for s, value in (("train", 10), ("test", 200)):
        for name in ("car", "train", "test_tube"):
            for i in range(2):
                draw(tmp_path / s / name / f"{i}.png", value)
    data = load_data(f"imagefolder:{tmp_path}", vit=digits_vit, split=split)
    assert data.class_names == ["car", "test_tube", "train"]
    assert labels(data) == [0, 0, 1, 1, 2, 2]
    values = data.batch(range(6))[0]
    assert torch.equal(values, values[:1].expand_as(values))  # of one split alone


@pytest.mark.parametrize(("split", "value"), [("val", 50), ("validation", 50), ("ood", 90)])
def test_any_folder_is_a_split(
    digits_vit: HookedViT, tmp_path: Path, split: str, value: int
) -> None:
    for s, v in (("train", 10), ("val", 50), ("ood", 90)):
        for name in ("cat", "dog"):
            draw(tmp_path / s / name / "0.png", v)
    data = load_data(f"imagefolder:{tmp_path}", vit=digits_vit, split=split)
    assert (labels(data), data.class_names, data.split) == ([0, 1], ["cat", "dog"], split)
    expected = digits_vit.preprocess(Image.new("RGB", (8, 8), (value,) * 3))
    assert torch.equal(data.batch([0])[0][0], expected)


def test_two_folders_that_mean_the_split_are_refused(digits_vit: HookedViT, tmp_path: Path) -> None:
    for s in ("val", "dev"):
        draw(tmp_path / s / "cat" / "0.png")
    with pytest.raises(InputError, match=r'split is "validation"; .* has dev and val: name one'):
        load_data(f"imagefolder:{tmp_path}", vit=digits_vit, split="validation")
    assert named_split("dev", ("val", "dev"), "x") == "dev"
    assert named_split("Test", ("test",), "x") == "test"
    assert named_split("ood", ("test",), "x") is None


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_without_class_folders_are_images_without_labels(
    digits_vit: HookedViT, tmp_path: Path, split: str
) -> None:
    for s in ("train", "test"):
        for i in range(2):
            draw(tmp_path / s / f"{i}.png")
    data = load_data(f"imagefolder:{tmp_path}", vit=digits_vit, split=split)
    assert (len(data), data.class_names, labels(data)) == (2, [], [-1, -1])
    assert data.left_out == 0


@pytest.mark.parametrize("split", [None, "train"])
def test_a_folder_of_class_folders_is_its_own_split(
    digits_vit: HookedViT, tmp_path: Path, split: str | None
) -> None:
    for name in ("cat", "dog"):
        draw(tmp_path / name / "0.png")
    data = load_data(f"imagefolder:{tmp_path}", vit=digits_vit, split=split)
    assert (labels(data), data.class_names, data.split) == ([0, 1], ["cat", "dog"], split)
    with pytest.raises(InputError, match=r'split is "test"; expected a folder .* has cat, dog'):
        load_data(f"imagefolder:{tmp_path}", vit=digits_vit, split="test")


def test_characters_of_patterns_are_plain_characters(digits_vit: HookedViT, tmp_path: Path) -> None:
    for folder, value in (("run[1]", 255), ("run1", 0)):
        for name in ("cat", "d*g"):
            draw(tmp_path / folder / "test" / name / "0.png", value)
    data = load_data(f"imagefolder:{tmp_path}/run[1]", vit=digits_vit)
    assert data.class_names == ["cat", "d*g"]
    assert data.batch([0, 1])[0].mean() == 1


def test_a_tilde_is_the_home_folder(
    digits_vit: HookedViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "d/test/cat/0.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_data("imagefolder:~/d", vit=digits_vit)) == 1


def test_files_that_are_no_images_and_empty_folders_are_counted(
    digits_vit: HookedViT, tmp_path: Path
) -> None:
    for name in ("cat", "dog"):
        draw(tmp_path / "test" / name / "0.png")
        draw(tmp_path / "test" / name / "deeper" / "1.avif")  # Pillow reads it
    (tmp_path / "test/eel").mkdir()
    for file in ("eel/0.xyz", "cat/notes.txt", "cat/figure.eps", ".DS_Store"):
        (tmp_path / "test" / file).write_bytes(b"?")
    draw(tmp_path / "test/loose.png")
    data = load_data(f"imagefolder:{tmp_path}", vit=digits_vit)
    assert labels(data) == [0, 0, 1, 1]
    assert data.left_out == 1
    assert data.remarks == [
        "files with the extension of no image left out: 3 (.eps 1, .txt 1, .xyz 1)",
        "folders without an image left out: 1 (eel)",
        "images in no class folder left out: 1",
    ]


def test_files_are_in_the_order_of_their_paths(digits_vit: HookedViT, tmp_path: Path) -> None:
    for name in ("cat", "cat-2"):
        for i in (10, 9):
            draw(tmp_path / "test" / name / f"{i}.png", i)
    data = load_data(f"imagefolder:{tmp_path}", vit=digits_vit)
    assert data.class_names == ["cat", "cat-2"]
    assert labels(data) == [1, 1, 0, 0]  # "-" comes before "/"


# ---- CIFAR ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        ["Truck", "air-plane", "bird"],
        [str(i) for i in range(10)],
    ],
    ids=["synonyms", "some", "numbers"],
)
def test_cifar_folders_are_matched_by_name(
    digits_vit: HookedViT, tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        draw(tmp_path / "test" / name.replace("air-plane", "airplane") / "0.png")
    data = load_data(f"cifar10:{tmp_path}", vit=digits_vit)
    by_name = {"Truck": 9, "airplane": 0, "bird": 2, "plane": 0, "car": 1}
    places = {name: i for i, name in enumerate(data.class_names)}
    folders = sorted(path.name for path in (tmp_path / "test").iterdir())
    expected = [int(f) if f.isdigit() else by_name.get(f, places.get(f)) for f in folders]
    assert labels(data) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "newt"], 'label "newt" is no class of this data set; expected 10 names such as'),
        (["car", "automobile"], 'the class "automobile" twice'),
    ],
)
def test_cifar_folders_with_other_names_are_refused(
    digits_vit: HookedViT, tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        draw(tmp_path / "test" / name / "0.png")
    with pytest.raises(InputError, match=message):
        load_data(f"cifar10:{tmp_path}", vit=digits_vit)
