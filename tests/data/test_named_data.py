"""CIFAR and other named data sets from local files, splits by default, names that must fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from vit_clt import InputError, load_data
from vit_clt.data.prompts import CIFAR10_CLASSES, CIFAR100_CLASSES, COCO_CLASSES
from vit_clt.hooks import HookedViT

pytestmark = pytest.mark.usefixtures("offline_datasets")


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_cifar100(path: Path, fine: list[int]) -> None:
    """As the Hub holds it: two label columns, names with underscores."""
    stored = [name.replace(" ", "_") for name in CIFAR100_CLASSES]
    features = {
        "img": datasets.Image(),
        "fine_label": datasets.ClassLabel(names=stored),
        "coarse_label": datasets.ClassLabel(names=[f"coarse {i}" for i in range(20)]),
    }
    rows = {
        "img": [picture(i) for i in fine],
        "fine_label": fine,
        "coarse_label": [0] * len(fine),
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)


def test_cifar100_from_parquet_has_fine_labels_and_prompted_names(
    digits_vit: HookedViT, tmp_path: Path
) -> None:
    write_cifar100(tmp_path / "test-0.parquet", [99, 1])
    write_cifar100(tmp_path / "train-0.parquet", [3])
    data = load_data(f"cifar100:{tmp_path}", vit=digits_vit)
    images, labels = data.batch([0, 1])
    assert labels.tolist() == [99, 1]
    assert torch.equal(images[0], digits_vit.preprocess(picture(99)))
    assert data.class_names == CIFAR100_CLASSES
    assert (data.name, data.split) == (f"cifar100:{tmp_path} (test)", "test")
    file = load_data(f"cifar100:{tmp_path}/train-0.parquet", vit=digits_vit)
    assert (len(file), file.split) == (1, None)  # a single file is its own split
    coarse = load_data(f"cifar100:{tmp_path}", vit=digits_vit, label_column="coarse_label")
    assert coarse.batch([0])[1].tolist() == [0]


def test_cifar10_from_a_folder_of_images(digits_vit: HookedViT, tmp_path: Path) -> None:
    for i, name in enumerate(CIFAR10_CLASSES):
        path = tmp_path / "test" / name / "0.png"
        path.parent.mkdir(parents=True)
        picture(i).save(path)
    data = load_data(f"cifar10:{tmp_path}", vit=digits_vit)
    images, labels = data.batch(range(10))
    assert labels.tolist() == list(range(10))
    assert torch.equal(images[4], digits_vit.preprocess(picture(4)))
    assert data.class_names == CIFAR10_CLASSES


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("cifar10", {"split": "val"}, 'split is "val"; cifar10 has "train" and "test"'),
        ("cifar100:{}", {"split": "val"}, 'split is "val"; cifar100 has "train" and "test"'),
        ("cifar100:{}", {"split": "train"}, r"a folder with train\*\.parquet"),
        (
            "cifar10:{}/absent",
            {},
            "absent, which does not exist; expected a parquet file, a fol",
        ),
        ("cifar10:", {}, 'data is "cifar10:"; expected one of digits, adding, cifar10'),
        ("digits:{}", {}, 'data is "digits:'),
        ("parquet", {}, 'data is "parquet"'),
        ("cifar10:{}/apple.parquet", {}, 'label "apple" is no class of this data set'),
        (
            "parquet:{}/test.parquet",
            {"label_column": "fine_label", "class_names": ["a", "b"]},
            "class_names holds 2 names; .*test.parquet has 100 classes, expected as many",
        ),
        ("cifar100:{}", {"class_names": ["a"] * 99}, r"holds 99 names; cifar100.* has 100 classes"),
        ("digits", {"class_names": ["a"] * 9}, "class_names holds 9 names; digits has 10 classes"),
    ],
)
def test_bad_forms_and_names_are_refused(
    digits_vit: HookedViT, tmp_path: Path, form: str, options: dict[str, object], message: str
) -> None:
    write_cifar100(tmp_path / "test.parquet", [99, 1])
    rows = {"image": [picture(0)], "label": ["apple"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "apple.parquet")
    with pytest.raises(InputError, match=message) as caught:
        load_data(form.format(tmp_path), vit=digits_vit, **options)
    assert "\n" not in str(caught.value)


def test_names_must_reach_the_highest_number_where_classes_have_no_names(
    digits_vit: HookedViT, tmp_path: Path
) -> None:
    rows = {"image": [picture(i) for i in range(3)], "label": [4, 0, -1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    form = f"parquet:{tmp_path}/a.parquet"
    assert len(load_data(form, vit=digits_vit, class_names=list("abcde")).class_names) == 5
    with pytest.raises(InputError, match="labels up to 4, expected 5 names"):
        load_data(form, vit=digits_vit, class_names=list("abcd"))


def test_class_lists_are_the_published_ones() -> None:
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert (COCO_CLASSES[0], COCO_CLASSES[41], COCO_CLASSES[79]) == ("person", "cup", "toothbrush")
    # both CIFAR lists are in alphabetical order, so folders named by class are in label order
    for names in (CIFAR10_CLASSES, CIFAR100_CLASSES):
        assert names == sorted(names)


@pytest.mark.skipif("VIT_CLT_DATA" not in os.environ, reason="VIT_CLT_DATA names no data folder")
@pytest.mark.parametrize(("name", "n"), [("cifar10", 10_000), ("adding", 5_000)])
def test_real_local_copies(digits_vit: HookedViT, name: str, n: int) -> None:
    folder = Path(os.environ["VIT_CLT_DATA"]) / "data" / name
    form = f"cifar10:{folder}" if name == "cifar10" else f"parquet:{folder}"
    data = load_data(form, vit=digits_vit)
    images, labels = data.batch(range(20))
    assert len(data) == n
    assert images.shape == (20, 3, 8, 8)
    assert len(data.class_names) == 10
    assert 0 <= int(labels.min()) <= int(labels.max()) < 10


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_of_class_names_is_utf8_whatever_the_system(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text("Bäume\n\ncat\n", encoding=encoding)
    code = (
        "import sys; from pathlib import Path; from vit_clt.cli.options import ModelOptions; "
        "print(ascii(ModelOptions(class_names=Path(sys.argv[1]))._names()))"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = subprocess.run(
        [sys.executable, "-c", code, path],
        env={**os.environ, **plain},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == r"['B\xe4ume', 'cat']"
