"""Parquet files: every kind of label and image, what is read of a file, and hostile ones."""

from __future__ import annotations

import io
import pickle
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from vit_clt import InputError, load_data
from vit_clt.data import parquet
from vit_clt.data.images import ImageData, UnreadableImage
from vit_clt.data.labels import class_numbers, matched
from vit_clt.data.prompts import CIFAR100_CLASSES, CIFAR100_SYNONYMS
from vit_clt.hooks import HookedViT

NAMES = ["cat", "dog"]


def png(value: int = 128) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def row(value: int = 128) -> dict[str, Any]:
    return {"bytes": png(value), "path": None}


def write(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return f"parquet:{path}"


def labels(data: ImageData) -> list[int]:
    return data.batch(range(len(data)))[1].tolist()


# ---- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "expected", "names"),
    [
        (["dog", "cat"], [1, 0], NAMES),
        ([1.0, 0.0], [1, 0], []),
        ([[1], [0]], [1, 0], []),
        ([True, False], [1, 0], []),
        (["10", "9"], [10, 9], []),
        (pa.array([1, 0], pa.uint64()), [1, 0], []),
        (pa.array([-1, -1]), [-1, -1], []),
        (pa.array([None, None], pa.int64()), [-1, -1], []),
        (pa.array(["dog", "cat"]).dictionary_encode(), [1, 0], NAMES),
    ],
    ids=["string", "float", "list", "bool", "digits", "uint64", "unknown", "null", "categories"],
)
def test_labels_of_every_kind(
    digits_vit: HookedViT, tmp_path: Path, stored: Any, expected: list[int], names: list[str]
) -> None:
    form = write(tmp_path / "a.parquet", image=[row(), row()], label=stored)
    data = load_data(form, vit=digits_vit)
    assert (labels(data), data.class_names) == (expected, names)
    assert data.batch([0])[1].dtype == torch.int64


@pytest.mark.parametrize(
    "stored",
    [
        [0, None, 1, -1],
        [0.0, float("nan"), 1.0, -1.0],
        ["cat", None, "dog", ""],
        [[0], [], [1], []],
    ],
)
def test_unknown_labels_are_left_out_and_counted(
    digits_vit: HookedViT, tmp_path: Path, stored: list[Any]
) -> None:
    form = write(tmp_path / "a.parquet", image=[row(i) for i in range(4)], label=stored)
    data = load_data(form, vit=digits_vit)
    assert (labels(data), data.left_out) == ([0, 1], 2)
    assert data.remarks == ("images without a label left out: 2",)
    expected = digits_vit.preprocess(Image.new("L", (8, 8), 2))
    assert torch.equal(data.batch([1])[0][0], expected)
    limited = load_data(form, vit=digits_vit, limit=1)
    assert (labels(limited), limited.left_out) == ([0], 0)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([0.5, 1.0], "hold 0.5; expected class numbers or class names"),
        ([[0, 1], [1]], r"hold the list \[0, 1\]; expected one label an image"),
        ([-100, 0], "hold -100; expected class numbers from 0, or -1"),
        (pa.array([2**64 - 1, 0], pa.uint64()), "hold 18446744073709551615; expected class"),
        ([{"a": 1}, {"a": 2}], "hold {'a': 1}; expected class numbers or class names"),
        ([b"cat", b"dog"], "hold b'cat'"),
    ],
)
def test_other_labels_are_refused(
    digits_vit: HookedViT, tmp_path: Path, stored: Any, message: str
) -> None:
    form = write(tmp_path / "a.parquet", image=[row(), row()], label=stored)
    with pytest.raises(InputError, match=message):
        load_data(form, vit=digits_vit)


def test_names_given_by_the_user_number_the_labels(digits_vit: HookedViT, tmp_path: Path) -> None:
    form = write(tmp_path / "a.parquet", image=[row(), row()], label=["cat", "dog"])
    data = load_data(form, vit=digits_vit, class_names=["dog", "newt", "cat"])
    assert (labels(data), data.class_names) == ([2, 0], ["dog", "newt", "cat"])
    data = load_data(form, vit=digits_vit, class_names=["a cat", "a dog"])
    assert (labels(data), data.class_names) == ([0, 1], ["a cat", "a dog"])


def test_the_classes_in_another_order_are_refused(digits_vit: HookedViT, tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(2, NAMES)}
    )
    rows = {"image": [row(), row()], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    form = f"parquet:{tmp_path}/a.parquet"
    with pytest.raises(InputError, match=r'holds "dog" at place 0, where .* has the class "cat"'):
        load_data(form, vit=digits_vit, class_names=["dog", "cat"])


def test_numbers_beside_names_are_refused() -> None:
    with pytest.raises(InputError, match="hold 3 and 'cat'; expected class numbers or names"):
        class_numbers(["cat", 3], "data")


def test_a_published_list_with_one_other_spelling_is_in_its_order() -> None:
    stored = [name.replace(" ", "_") for name in CIFAR100_CLASSES]
    assert matched(stored, CIFAR100_CLASSES, {}) == list(range(100))
    stored[26] = "cra"
    assert matched(stored, CIFAR100_CLASSES, CIFAR100_SYNONYMS) == list(range(100))
    assert matched(stored, CIFAR100_CLASSES, {}) == list(range(100))
    with pytest.raises(InputError, match='label "cra" is no class'):
        matched(stored[::-1], CIFAR100_CLASSES, {})


# ---- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["struct", "bytes", "path", "grey", "colour", "channels first"])
def test_images_of_every_kind(digits_vit: HookedViT, tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if kind == "grey":
        pixels = pixels[:, :, 0]
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "files").mkdir()
    image.save(tmp_path / "files/x.png")
    stored = {
        "struct": {"bytes": buffer.getvalue(), "path": "x.png"},
        "bytes": buffer.getvalue(),
        "path": "files/x.png",
        "grey": pixels.tolist(),
        "colour": pixels.tolist(),
        "channels first": pixels.transpose(2, 0, 1).tolist() if pixels.ndim == 3 else None,
    }[kind]
    form = write(tmp_path / "a.parquet", jpg=[stored], label=[0])
    data = load_data(form, vit=digits_vit, image_column="jpg")
    assert torch.equal(data.batch([0])[0][0], digits_vit.preprocess(image))
    again = pickle.loads(pickle.dumps(data))  # as it goes to a process that decodes images
    assert torch.equal(again.batch([0])[0], data.batch([0])[0])


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("{tmp}/x.png", 'path is "/.*, expected one relative to the folder of the table'),
        ("../x.png", r'path "\.\./x\.png" leads out of'),
        ("https://example.org/x.png", "expected one relative to the folder"),
        ("file:///x.png", "expected one relative to the folder"),
        ({"bytes": None, "path": "{tmp}/x.png"}, "expected one relative to the folder"),
        ({"bytes": None, "path": None}, "it is missing"),
        ([1, 2, 3], r"an array of shape \(3,\), expected rows of pixels"),
        ([[0.5, 1.0]], "not whole numbers from 0 to 255"),
        ([[0, 256]], "not whole numbers from 0 to 255"),
        ([[1], [2, 3]], "row 0 holds an image"),
        (7, "it is a int, expected encoded bytes, a path or pixels"),
    ],
)
def test_other_images_are_refused(
    digits_vit: HookedViT, tmp_path: Path, stored: Any, message: str
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    if isinstance(stored, str):
        stored = stored.format(tmp=tmp_path)
    elif isinstance(stored, dict) and stored["path"]:
        stored = {"bytes": None, "path": stored["path"].format(tmp=tmp_path)}
    column = pa.array([stored, stored])
    form = write(tmp_path / "folder/a.parquet", image=column, label=[0, 1])
    with pytest.raises(UnreadableImage, match=message):
        load_data(form, vit=digits_vit).batch([0])


def test_eps_is_not_opened(digits_vit: HookedViT, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "EPS")
    form = write(tmp_path / "a.parquet", image=[buffer.getvalue()], label=[0])
    with pytest.raises(UnreadableImage, match="it is no image in a format that is read"):
        load_data(form, vit=digits_vit).batch([0])


def test_an_image_above_pillows_limit_is_one_sentence(
    digits_vit: HookedViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = write(tmp_path / "a.parquet", image=[row()], label=[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(UnreadableImage, match="it has more than 62 pixels, the most that Pillow"):
        load_data(form, vit=digits_vit).batch([0])


# ---- what is read -----------------------------------------------------------------------------


def test_only_the_rows_and_columns_asked_for_are_read(
    digits_vit: HookedViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_read = 0
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, size: int, groups: list[int], columns: list[str]) -> Any:
        nonlocal n_read
        for batch in iter_batches(self, size, groups, columns):
            n_read += batch.num_rows * (columns == ["image"])
            assert columns in (["image"], ["label"])
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    rows = [row(i) for i in range(100)]
    table = pa.table({"image": rows, "label": [0, 1] * 50, "sound": [b"?" * 1000] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    data = load_data(f"parquet:{tmp_path}/a.parquet", vit=digits_vit, limit=1)
    assert (len(data), n_read) == (1, 10)
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    del data
    assert not list((tmp_path / "temporary").iterdir())  # nothing is left behind


def test_rows_across_groups_and_files_are_the_right_ones(
    digits_vit: HookedViT, tmp_path: Path
) -> None:
    for part in range(2):
        table = pa.table(
            {
                "image": [row(10 * part + i) for i in range(10)],
                "label": [None if i % 3 == 0 else i for i in range(10)],
            }
        )
        pq.write_table(table, tmp_path / f"test-{part}.parquet", row_group_size=3)
    data = load_data(f"parquet:{tmp_path}", vit=digits_vit)
    kept = [i for i in range(20) if i % 10 % 3]
    assert labels(data) == [i % 10 for i in kept]
    images = [digits_vit.preprocess(Image.new("L", (8, 8), i)) for i in kept]
    assert torch.equal(data.batch(range(len(data)))[0], torch.stack(images))


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_file_that_unpacks_to_gigabytes_is_refused(
    digits_vit: HookedViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    monkeypatch.setattr(parquet, "LEAST_BOUND", 20_000_000)
    columns = {"image": [png()] * 3000, "label": ["cat"] * 3000}
    columns[column] = [png() + b"0" * 100_000 if column == "image" else "cat" * 40_000] * 3000
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="unpacks to more than 20 MB; expected at most 100 times"):
        load_data(f"parquet:{path}", vit=digits_vit)


def test_a_split_is_not_the_files_that_begin_like_it(digits_vit: HookedViT, tmp_path: Path) -> None:
    for i, name in enumerate(("test_hard", "test-00000-of-00001", "testing-0", "[test]")):
        write(tmp_path / f"{name}.parquet", image=[row(i)] * (i + 1), label=[0] * (i + 1))
    form = f"parquet:{tmp_path}"
    for split, n in (("test", 2), ("test_hard", 1), ("[test]", 4), ("testing", 3)):
        assert len(load_data(form, vit=digits_vit, split=split)) == n
    with pytest.raises(InputError, match=r"a folder with t\*\.parquet"):
        load_data(form, vit=digits_vit, split="t")
    write(tmp_path / "ood/0000.parquet", image=[row()] * 5, label=[0] * 5)
    assert len(load_data(form, vit=digits_vit, split="ood")) == 5


def test_files_with_other_columns_are_refused(digits_vit: HookedViT, tmp_path: Path) -> None:
    write(tmp_path / "test-0.parquet", image=[row()], label=[0])
    write(tmp_path / "test-1.parquet", image=[row()], kind=[0])
    with pytest.raises(InputError, match=r"test-1.parquet has columns image, kind; expected those"):
        load_data(f"parquet:{tmp_path}", vit=digits_vit)
