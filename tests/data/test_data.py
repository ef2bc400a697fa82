"""Images from every form: the digits, parquet, folders of images, the Hub's names, tensors."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vit_clt import InputError, load_data
from vit_clt.data.digits import DIGITS_CLASSES, digits_arrays
from vit_clt.data.images import ImageData, TensorImages, as_image_data
from vit_clt.data.prompts import CIFAR10_CLASSES
from vit_clt.hooks import HookedViT

NAMES = ["cat", "dog", "newt"]
CHANNELS = {"RGB": (3,), "RGBA": (4,), "L": (), "LA": (2,)}


@pytest.fixture(autouse=True)
def _nothing_left_behind(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, *CHANNELS[mode]), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: list[bytes | None],
    labels: list[object] | None = None,
    columns: tuple[str, str] = ("img", "label"),
    label_type: object = None,
) -> str:
    """A parquet file as the Hub holds them; returns its form."""
    image_column, label_column = columns
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            image_column: datasets.Image(),
            label_column: label_type or datasets.ClassLabel(names=NAMES),
        }
    )
    rows = {
        "id": range(len(images)),
        image_column: [None if b is None else {"bytes": b, "path": None} for b in images],
        label_column: [i % 3 for i in range(len(images))] if labels is None else labels,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return f"parquet:{path}"


def read_all(data: ImageData) -> tuple[torch.Tensor, list[int]]:
    images, labels = zip(*data, strict=True)
    return torch.cat(images), torch.cat(labels).tolist()


def preprocessed(vit: HookedViT, images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([vit.preprocess(image) for image in images])


# ---- digits -----------------------------------------------------------------------------------


def test_digits_split_is_complete_disjoint_and_stratified() -> None:
    images, labels = zip(*(digits_arrays(split) for split in ("train", "test")), strict=True)
    assert [len(i) for i in images] == [len(l) for l in labels] == [1437, 360]
    shares = [np.bincount(l, minlength=10) / len(l) for l in labels]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.003)
    assert {i.dtype.name for i in images} == {"uint8"}
    assert all((i.min(), i.max()) == (0, 255) for i in images)

    distinct = [{i.tobytes() for i in part} for part in images]
    assert not distinct[0] & distinct[1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_shipped_digits_are_scikit_learns_and_split_as_it_splits(split: str) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    whole = load_digits()
    train, test = train_test_split(
        np.arange(len(whole.target)), test_size=360, stratify=whole.target, random_state=0
    )
    rows = {"train": train, "test": test}[split]
    images, labels = digits_arrays(split)
    np.testing.assert_array_equal(images, np.rint(whole.images[rows] * (255 / 16)))
    np.testing.assert_array_equal(labels, whole.target[rows])


@pytest.mark.parametrize(("split", "n"), [("train", 1437), ("test", 360)])
def test_digits_are_loaded_in_the_preprocessing_of_the_model(
    digits_vit: HookedViT, split: str, n: int
) -> None:
    data = load_data("digits", vit=digits_vit, split=split)
    assert len(data) == n
    assert data.class_names == DIGITS_CLASSES
    assert data.name == f"digits ({split})"
    pixels, labels = digits_arrays(split)
    images, found = data.batch([5, 2, n - 1])
    assert found.tolist() == labels[[5, 2, n - 1]].tolist()
    expected = preprocessed(digits_vit, [Image.fromarray(pixels[i]) for i in (5, 2, n - 1)])
    assert torch.equal(images, expected)


def test_batches_come_in_row_order(digits_vit: HookedViT) -> None:
    data = load_data("digits", vit=digits_vit, limit=10)
    data.batch_size = 4
    assert [len(labels) for _, labels in data] == [4, 4, 2]
    images, labels = read_all(data)
    assert labels == digits_arrays("test")[1][:10].tolist()
    assert torch.equal(images, data.batch(range(10))[0])


def test_digits_take_other_class_names(digits_vit: HookedViT) -> None:
    names = list("0123456789")
    assert load_data("digits", vit=digits_vit, class_names=names).class_names == names


# ---- parquet ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "fine"), ("label", "image")])
def test_parquet_columns_are_found_by_type(
    digits_vit: HookedViT, tmp_path: Path, columns: tuple[str, str]
) -> None:
    pictures = [picture(i) for i in range(5)]
    form = write_parquet(tmp_path / "a.parquet", [encoded(p) for p in pictures], columns=columns)
    data = load_data(form, vit=digits_vit)
    images, labels = read_all(data)
    assert len(data) == 5
    assert labels == [0, 1, 2, 0, 1]
    assert data.class_names == NAMES
    assert torch.equal(images, preprocessed(digits_vit, pictures))


def test_untyped_label_column_is_found_by_name_and_named_by_the_user(
    digits_vit: HookedViT, tmp_path: Path
) -> None:
    images = [encoded(picture(i)) for i in range(2)]
    form = write_parquet(tmp_path / "a.parquet", images, label_type=datasets.Value("int64"))
    assert load_data(form, vit=digits_vit).class_names == []
    named = load_data(form, vit=digits_vit, class_names=("x", "y"))
    assert named.class_names == ["x", "y"]
    assert read_all(named)[1] == [0, 1]


def two_of_each(path: Path) -> tuple[str, list[Image.Image]]:
    pictures = [picture(i) for i in range(4)]
    features = {name: datasets.Image() for name in ("photo", "mask")}
    features |= {name: datasets.ClassLabel(names=NAMES) for name in ("fine", "coarse")}
    rows = {
        "photo": pictures[:2],
        "mask": pictures[2:],
        "fine": [0, 1],
        "coarse": [2, 2],
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)
    return f"parquet:{path}", pictures


def test_columns_may_be_chosen(digits_vit: HookedViT, tmp_path: Path) -> None:
    form, pictures = two_of_each(tmp_path / "a.parquet")
    data = load_data(form, vit=digits_vit, image_column="mask", label_column="coarse")
    images, labels = read_all(data)
    assert labels == [2, 2]
    assert torch.equal(images, preprocessed(digits_vit, pictures[2:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "image_column is not given and 2 columns are of type Image"),
        ({"image_column": "mask"}, "label_column is not given and 2 columns are of type Class"),
        ({"image_column": "pixels"}, 'image_column is "pixels"'),
        ({"image_column": "mask", "label_column": "y"}, 'label_column is "y"'),
    ],
)
def test_wrong_columns_are_refused_and_the_available_ones_named(
    digits_vit: HookedViT, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    form, _ = two_of_each(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message) as caught:
        load_data(form, vit=digits_vit, **options)
    assert "photo, mask, fine, coarse" in str(caught.value).replace('"', "")


@pytest.mark.parametrize(("limit", "n"), [(1, 1), (3, 3), (50, 7)])
def test_limit_takes_the_first_rows(
    digits_vit: HookedViT, tmp_path: Path, limit: int, n: int
) -> None:
    pictures = [picture(i) for i in range(7)]
    form = write_parquet(tmp_path / "a.parquet", [encoded(p) for p in pictures])
    data = load_data(form, vit=digits_vit, limit=limit)
    assert len(data) == n
    assert torch.equal(read_all(data)[0], preprocessed(digits_vit, pictures[:n]))


@pytest.mark.parametrize(("split", "labels"), [("test", [0, 1, 2, 2]), ("train", [1])])
def test_parquet_folder_holds_splits_in_shards(
    digits_vit: HookedViT, tmp_path: Path, split: str, labels: list[int]
) -> None:
    for name, ids in (("test-0", [0, 1]), ("test-1", [2, 2]), ("train", [1])):
        images = [encoded(picture(i)) for i in ids]
        write_parquet(tmp_path / f"{name}.parquet", images, ids)
    data = load_data(f"parquet:{tmp_path}", vit=digits_vit, split=split)
    images, found = read_all(data)
    assert found == labels
    assert torch.equal(images, preprocessed(digits_vit, [picture(i) for i in labels]))
    assert data.name == f"parquet:{tmp_path} ({split})"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_and_transparent_images_become_three_channels(
    digits_vit: HookedViT, tmp_path: Path, mode: str
) -> None:
    form = write_parquet(tmp_path / "a.parquet", [encoded(picture(0, mode)), encoded(picture(1))])
    images, _ = read_all(load_data(form, vit=digits_vit))
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal(images, preprocessed(digits_vit, [picture(0, mode), picture(1)]))


def damaged(how: str) -> bytes:
    png = bytearray(encoded(picture(1)))
    if how == "cut":
        return bytes(png[: len(png) // 2])
    if how == "chunk":  # a chunk length that leads nowhere
        png[png.index(b"IDAT") - 1] ^= 0x0F
        return bytes(png)
    return b"" if how == "empty" else b"not an image"


@pytest.mark.parametrize("how", ["text", "empty", "cut", "chunk"])
def test_corrupt_image_is_refused_with_its_rows(
    digits_vit: HookedViT, tmp_path: Path, how: str
) -> None:
    images = [encoded(picture(i)) for i in range(6)]
    images[4] = damaged(how)
    data = load_data(write_parquet(tmp_path / "a.parquet", images), vit=digits_vit)
    data.batch_size = 3
    batches = iter(data)
    assert next(batches)[1].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"a\.parquet: row.*(4|3 to 5)"):
        next(batches)


def test_missing_image_is_refused(digits_vit: HookedViT, tmp_path: Path) -> None:
    images = [encoded(picture(0)), None]
    with pytest.raises(InputError, match="row 1 holds an image that cannot be read: it is missing"):
        read_all(load_data(write_parquet(tmp_path / "a.parquet", images), vit=digits_vit))


@pytest.mark.parametrize("options", [{"image_column": "id"}, {"label_column": "img"}])
def test_column_of_another_type_is_refused(
    digits_vit: HookedViT, tmp_path: Path, options: dict[str, str]
) -> None:
    form = write_parquet(tmp_path / "a.parquet", [encoded(picture(0))])
    with pytest.raises(InputError, match="column"):
        read_all(load_data(form, vit=digits_vit, **options))


# ---- folders of images ------------------------------------------------------------------------


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """split/class/number, PNG and JPEG, grey and colour."""
    for split, n in (("train", 3), ("test", 2)):
        for label, name in enumerate(NAMES):
            for i in range(n):
                path = tmp_path / "images" / split / name / f"{i}.{'jpg' if i else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(10 * label + i, "L" if i else "RGB").save(path)
    return tmp_path / "images"


@pytest.mark.parametrize(("split", "n"), [("train", 3), ("test", 2)])
def test_image_folder(digits_vit: HookedViT, image_folder: Path, split: str, n: int) -> None:
    data = load_data(f"imagefolder:{image_folder}", vit=digits_vit, split=split)
    images, labels = read_all(data)
    assert data.class_names == NAMES
    assert labels == [label for label in range(3) for _ in range(n)]
    files = sorted((image_folder / split).glob("*/*"))
    assert torch.equal(images, preprocessed(digits_vit, [Image.open(f) for f in files]))


def test_corrupt_file_in_a_folder_is_named(digits_vit: HookedViT, image_folder: Path) -> None:
    (image_folder / "test/dog/0.png").write_bytes(b"not an image")
    data = load_data(f"imagefolder:{image_folder}", vit=digits_vit)
    with pytest.raises(InputError, match=r"dog/0\.png"):
        read_all(data)


# ---- bad input --------------------------------------------------------------------------------


def one_sentence(message: str) -> bool:
    return "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("mnist", {}, 'data is "mnist"; expected one of digits, adding, cifar10'),
        ("parquet:", {}, 'data is "parquet:"'),
        ("zip:here", {}, 'data is "zip:here"'),
        ("digits", {"split": "validation"}, 'split is "validation"; digits has "train" and "test"'),
        ("digits", {"limit": 0}, "limit is 0; expected at least 1"),
        ("digits", {"limit": -3}, "limit is -3"),
        ("parquet:{tmp}/absent.parquet", {}, "expected a parquet file, or a folder"),
        ("parquet:{tmp}", {"split": "val"}, "val*.parquet"),
        ("parquet:{tmp}/test.parquet", {"limit": 0}, "limit is 0"),
        ("parquet:{tmp}/empty.parquet", {}, "empty.parquet"),
        ("parquet:{tmp}/junk.parquet", {}, "cannot be read"),
        ("imagefolder:{tmp}/absent", {}, "expected a folder there"),
        ("imagefolder:{tmp}/nothing", {}, "found no image in"),
        ("imagefolder:{tmp}/images", {"split": "val"}, 'split is "val"; expected a folder of'),
    ],
)
def test_bad_forms_are_refused(
    digits_vit: HookedViT,
    image_folder: Path,
    tmp_path: Path,
    form: str,
    options: dict[str, object],
    message: str,
) -> None:
    write_parquet(tmp_path / "test.parquet", [encoded(picture(0))])
    write_parquet(tmp_path / "empty.parquet", [])
    (tmp_path / "junk.parquet").write_bytes(b"hello")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_data(form.format(tmp=tmp_path), vit=digits_vit, **options)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("form", ["cifar10", "cifar100", "hf:someone/something"])
def test_hub_name_without_a_network_is_one_sentence(
    digits_vit: HookedViT, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    asked = []

    def unreachable(*args: object, **kwargs: object) -> None:
        asked.append((args, kwargs))
        raise ConnectionError("cannot reach\nthe Hub: " + "many words " * 50)

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="cannot be read: cannot reach the Hub") as caught:
        load_data(form, vit=digits_vit, split="train")
    assert one_sentence(str(caught.value))
    repository = form.removeprefix("hf:") if ":" in form else f"uoft-cs/{form}"
    assert asked == [((repository,), {"split": "train"})]


@pytest.mark.parametrize(
    ("form", "columns", "names"),
    [("cifar10", ("img", "label"), CIFAR10_CLASSES), ("hf:a/b", ("picture", "kind"), NAMES)],
)
def test_hub_data_set_is_read_from_its_columns(
    digits_vit: HookedViT,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    form: str,
    columns: tuple[str, str],
    names: list[str],
) -> None:
    images = [encoded(picture(i)) for i in range(4)]
    label_type = datasets.ClassLabel(names=names)
    write_parquet(tmp_path / "a.parquet", images, columns=columns, label_type=label_type)
    stored = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: stored)
    data = load_data(form, vit=digits_vit, limit=3)
    assert read_all(data)[1] == [0, 1, 2]
    assert data.class_names == names


def test_model_without_preprocessing_is_refused(tiny_vit: HookedViT) -> None:
    with pytest.raises(InputError, match="no preprocessing"):
        load_data("digits", vit=tiny_vit)


# ---- tensors and batches ----------------------------------------------------------------------


@pytest.fixture
def tensor() -> torch.Tensor:
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: TensorImages(x, y),
        lambda x, y: [(x[:2], y[:2]), (x[2:], y[2:])],
        lambda x, y: ([x[i : i + 1], y[i : i + 1]] for i in range(5)),
        lambda x, y: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 3),
    ],
    ids=["ImageData", "list", "generator", "DataLoader"],
)
def test_batches_keep_images_and_labels(tensor: torch.Tensor, wrap: Callable[..., object]) -> None:
    labels = torch.tensor([3, 1, 4, 1, 5])
    data = as_image_data(wrap(tensor, labels))
    data.batch_size = 2
    images, found = read_all(data)
    assert torch.equal(images, tensor)
    assert found == labels.tolist()
    images, found = data.batch([4, 0])
    assert torch.equal(images, tensor[[4, 0]])
    assert found.tolist() == [5, 3]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x[:3], x[3:]]], ids=["tensor", "list"])
def test_images_without_labels_have_label_minus_one(
    tensor: torch.Tensor, wrap: Callable[..., object]
) -> None:
    data = as_image_data(wrap(tensor))
    assert len(data) == 5
    assert torch.equal(read_all(data)[0], tensor)
    assert read_all(data)[1] == [-1] * 5
    assert torch.equal(data.batch([4, 0])[0], tensor[[4, 0]])


def test_image_data_is_taken_as_it_is(digits_test: ImageData) -> None:
    assert as_image_data(digits_test) is digits_test


@pytest.mark.parametrize("nothing", [[], torch.zeros(0, 3, 4, 4)], ids=["list", "tensor"])
def test_no_images_are_refused(nothing: object) -> None:
    with pytest.raises(InputError, match="images is empty"):
        as_image_data(nothing)


# ---- real photographs, where they are at hand -------------------------------------------------


@pytest.mark.skipif("VIT_CLT_DATA" not in os.environ, reason="VIT_CLT_DATA names no data folder")
def test_real_cifar10_test_rows(digits_vit: HookedViT) -> None:
    form = f"parquet:{os.environ.get('VIT_CLT_DATA')}/data/cifar10/test.parquet"
    data = load_data(form, vit=digits_vit, limit=20)
    images, labels = read_all(data)
    assert images.shape == (20, 3, 8, 8)
    assert np.bincount(labels).tolist() == [2] * 10
    assert data.class_names == CIFAR10_CLASSES
    assert (data.class_names[0], data.class_names[-1]) == ("airplane", "truck")


def test_images_as_pandas_writes_them(tmp_path: Path, digits_vit: HookedViT) -> None:
    encoded = io.BytesIO()
    Image.new("L", (8, 8), 255).save(encoded, format="PNG")
    rows = [{"img": {"bytes": encoded.getvalue(), "path": None}, "label": 3}] * 2
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    data = load_data(f"parquet:{tmp_path / 'a.parquet'}", vit=digits_vit)
    images, labels = data.batch([0, 1])
    assert images.shape == (2, 3, 8, 8)
    assert labels.tolist() == [3, 3]
    assert data.split is None
