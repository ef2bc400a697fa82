"""ImageNet-100: its list of classes, and copies in folders named after WordNet ids."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image

from vit_clt import InputError, load_data
from vit_clt.data.imagenet100 import IMAGENET100, class_numbers
from vit_clt.hooks import HookedViT

pytestmark = pytest.mark.usefixtures("offline_datasets")
WNIDS, NAMES = list(IMAGENET100), list(IMAGENET100.values())
SOME = [WNIDS[7], WNIDS[0], WNIDS[99]]


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, n in (("train", 2), ("val", 1)):
        for wnid in SOME:
            for i in range(n):
                path = tmp_path / split / wnid / f"{wnid}_{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(WNIDS.index(wnid) + i).save(path)
    return tmp_path


def test_names_are_open_clips_by_wordnet_id() -> None:
    info = Path(timm.__file__).parent / "data/_info/imagenet_synsets.txt"
    synsets = info.read_text().split()  # the 1,000 ids in ImageNet's label order
    assert len(synsets) == len(IMAGENET_CLASSNAMES) == 1000
    assert len(IMAGENET100) == len(set(NAMES)) == 100
    expected = {wnid: IMAGENET_CLASSNAMES[synsets.index(wnid)] for wnid in WNIDS}
    assert expected == IMAGENET100
    assert (WNIDS[0], NAMES[:4]) == (
        "n02869837",
        ["poke bonnet", "green mamba", "langur", "Dobermann"],
    )


@pytest.mark.parametrize(("split", "n"), [("train", 2), ("validation", 1), (None, 1)])
def test_folders_are_numbered_by_the_list(
    digits_vit: HookedViT, folder: Path, split: str | None, n: int
) -> None:
    data = load_data(f"imagenet100:{folder}", vit=digits_vit, split=split)
    images, labels = data.batch(range(len(data)))
    assert sorted(labels.tolist()) == [l for l in (0, 7, 99) for _ in range(n)]
    for image, label in zip(images, labels.tolist(), strict=True):
        candidates = [digits_vit.preprocess(picture(label + i)) for i in range(n)]
        assert any(torch.equal(image, c) for c in candidates)
    assert data.class_names == NAMES
    assert data.split == (split or "validation")


def test_unknown_wordnet_id_is_named(digits_vit: HookedViT, folder: Path) -> None:
    for split in ("train", "val"):
        (folder / split / SOME[0]).rename(folder / split / "n00000001")
    with pytest.raises(InputError, match='imagenet100 has a class "n00000001", which is not one'):
        load_data(f"imagenet100:{folder}", vit=digits_vit)


def test_class_numbers() -> None:
    assert class_numbers(SOME) == [7, 0, 99]
    assert class_numbers([f"bonnet {i}" for i in range(100)]) == list(range(100))
    with pytest.raises(InputError, match='imagenet100 has 2 classes, the first "cat"'):
        class_numbers(["cat", "dog"])
    with pytest.raises(InputError, match="imagenet100 has 0 classes"):
        class_numbers([])


def stored(names: list[str] | None, labels: list[int]) -> datasets.Dataset:
    label = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict(
        {"image": [picture(i) for i in range(len(labels))], "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": label}),
    )


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (SOME, [0, 1, 2], [7, 0, 99]),
        (None, [5, 99], [5, 99]),
        ([f"name {i}, other name" for i in range(100)], [3, 98], [3, 98]),
        (sorted(WNIDS), [0], [WNIDS.index(min(WNIDS))]),
    ],
)
def test_parquet_copy(
    digits_vit: HookedViT,
    tmp_path: Path,
    names: list[str] | None,
    labels: list[int],
    expected: list[int],
) -> None:
    stored(names, labels).to_parquet(tmp_path / "validation-0.parquet")
    data = load_data(f"imagenet100:{tmp_path}", vit=digits_vit)
    assert data.batch(range(len(data)))[1].tolist() == expected
    assert data.class_names == NAMES
    assert data.name == f"imagenet100:{tmp_path} (validation)"


def test_hub_copy(digits_vit: HookedViT, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    table = stored([f"name {i}" for i in range(100)], [4, 2])

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_data("imagenet100", vit=digits_vit)
    assert asked == [("clane9/imagenet-100", "validation")]
    assert data.batch([0, 1])[1].tolist() == [4, 2]
    assert data.class_names == NAMES
    with pytest.raises(
        InputError, match='split is "test"; imagenet100 has "train" and "validation"'
    ):
        load_data("imagenet100", vit=digits_vit, split="test")
    assert len(asked) == 1
