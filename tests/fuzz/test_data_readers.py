"""Damaged and hostile data either gives images and labels, or is refused in one sentence.

`make fuzz` runs the same tests with more examples.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import tiny_clip
from hypothesis import given
from hypothesis import strategies as st
from oracles.hostile import damages, fuzzing
from PIL import Image

from vit_clt import load_data
from vit_clt.cli.options import ModelOptions
from vit_clt.data.coco_regions import read_regions
from vit_clt.data.hierarchies import check_hierarchy, read_hierarchy
from vit_clt.data.imagenet100 import IMAGENET100
from vit_clt.data.images import ImageData, UnreadableImage
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT

VIT = HookedViT(tiny_clip(), preprocess=open_clip.image_transform(12, is_train=False))


def encoded(form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


PICTURES = [encoded(form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]


def read_or_refused(form: str, **options: Any) -> None:
    """Read every image of the data; whatever is wrong is one sentence."""
    try:
        check(load_data(form, vit=VIT, **options))
    except InputError as error:
        check_sentence(error)


def check(data: ImageData) -> None:
    n_classes = len(data.class_names)
    assert len(data) > 0
    assert data.left_out >= 0
    assert len(data.contents(range(len(data)))) == len(data)
    for row in range(len(data)):
        try:
            images, labels = data.batch([row])
        except UnreadableImage as error:
            check_sentence(error)
            continue
        assert images.shape == (1, 3, 12, 12)
        assert images.isfinite().all()
        assert labels.dtype == torch.int64
        assert -1 <= int(labels) < (n_classes or 1_000_000)


def check_sentence(error: InputError) -> None:
    text = str(error)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 2000


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---- folders ----------------------------------------------------------------------------------


@fuzzing(150)
@given(st.sampled_from(PICTURES), damages)
def test_image_files(place: Path, picture: bytes, damage: Callable[[bytes], bytes]) -> None:
    write(place / "folder/test/cat/0.png", picture)
    write(place / "folder/test/dog/0.png", damage(picture))
    read_or_refused(f"imagefolder:{place}/folder")


NAMES = st.text("abcinort0189_-. []*?~\u00e9\u202e", min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
KNOWN = st.sampled_from(["test", "train", "val", "dev", "plane", "cat", "apple", *IMAGENET100])


@fuzzing(150)
@given(st.data())
def test_names_of_folders(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("names")
    for names in data.draw(st.lists(st.lists(NAMES | KNOWN, min_size=0, max_size=3), max_size=4)):
        path = Path(folder, *names, data.draw(st.sampled_from(["0.png", "1.txt", "2", ".x.png"])))
        if not any(parent.is_file() for parent in path.parents) and not path.exists():
            write(path, PICTURES[0])
    kind = data.draw(st.sampled_from(["imagefolder", "cifar10", "cifar100", "imagenet100"]))
    split = data.draw(st.sampled_from([None, "train", "test", "val", "../x", "", "cat"]))
    read_or_refused(f"{kind}:{folder}", split=split, limit=data.draw(st.sampled_from([None, 1])))


# ---- parquet ----------------------------------------------------------------------------------

FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
)
ROWS = datasets.Dataset.from_dict(
    {"image": [{"bytes": p, "path": None} for p in PICTURES[:4]], "label": [0, 1, 1, 0]}, FEATURES
)


@fuzzing(250)
@given(damages, st.sampled_from(["parquet", "cifar10", "imagenet100"]))
def test_parquet_files(place: Path, damage: Callable[[bytes], bytes], kind: str) -> None:
    whole = place / "whole.parquet"
    if not whole.exists():
        ROWS.to_parquet(whole)
    write(place / "test.parquet", damage(whole.read_bytes()))
    read_or_refused(f"{kind}:{place}/test.parquet")


LABELS: list[Any] = [
    *(0, 1, -1, -100, 2**40, 10**30, True, None, 0.0, 1.5, float("nan"), float("inf"), 1e300),
    *("cat", "dog", "", "7", "\u0663", "x" * 5000, b"cat", [], [0], [0, 1], [[0]], ["cat"], [None]),
    *({"a": 1}, {"bytes": None, "path": None}, datetime(2020, 1, 1), Decimal("1.5")),
]
IMAGES: list[Any] = [
    *PICTURES[:3],
    *(b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", "x.png", "/etc/passwd", "https://a.b/c.png", "\0", ""),
    *("..", "a" * 5000, None, 1, 1.5, True, [], [[]], [[0, 255]], [[0, 256]], [[[1, 2, 3]]]),
    *([[1], [2, 3]], [[None]], [[1.5]], ["a"], {"bytes": PICTURES[0], "path": "/etc/passwd"}),
    *({"bytes": None, "path": "hf://a/b"}, {"bytes": None, "path": None}, {"path": 3, "bytes": 4}),
]


@fuzzing(300)
@given(st.data())
def test_values_of_columns(place: Path, data: Any) -> None:
    columns = {}
    for name, values in (("image", IMAGES), ("label", LABELS)):
        first = data.draw(st.sampled_from(values))
        alike = [v for v in values if type(v) is type(first)]
        column = data.draw(st.lists(st.sampled_from([*alike, None]), min_size=3, max_size=3))
        try:
            columns[name] = pa.array(column)
        except (pa.ArrowException, OverflowError):
            columns[name] = pa.array([str(v)[:20] for v in column])
    features = data.draw(st.sampled_from([None, {}, [], {"image": {"_type": []}}, {"label": 3}]))
    written = json.dumps({"info": {"features": features}})
    table = pa.table(columns).replace_schema_metadata({"huggingface": written})
    pq.write_table(table, place / "values.parquet")
    names = data.draw(st.sampled_from([None, ["cat", "dog"], ["dog"], ["a"] * 8]))
    kind = data.draw(st.sampled_from(["parquet", "parquet", "cifar100"]))
    read_or_refused(f"{kind}:{place}/values.parquet", class_names=names)


# ---- COCO, names, saved data sets -------------------------------------------------------------

COCO = {
    "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)],
    "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 3]},
        {"image_id": 2, "category_id": 9, "bbox": [], "segmentation": [[0, 0, 5, 0, 5, 5]]},
    ],
}


@fuzzing(200)
@given(damages)
def test_coco(place: Path, damage: Callable[[bytes], bytes]) -> None:
    for i in (1, 2):
        write(place / f"coco/val2017/{i}.png", PICTURES[0])
    content = damage(json.dumps(COCO).encode())
    write(place / "coco/annotations/instances_val2017.json", content)
    read_or_refused(f"coco:{place}/coco")


REGIONS = {
    **COCO,
    "images": [{"id": i, "file_name": f"{i}.png", "height": 9, "width": 7} for i in (1, 2)],
    "annotations": [
        {**COCO["annotations"][0], "segmentation": {"counts": [20, 3, 40], "size": [9, 7]}},
        COCO["annotations"][1],
    ],
}


@fuzzing(200)
@given(damages)
def test_coco_regions(place: Path, damage: Callable[[bytes], bytes]) -> None:
    path = place / "instances_val2017.json"
    write(path, damage(json.dumps(REGIONS).encode()))
    try:
        for region in read_regions(path, [1, 2])[0]:
            assert region.boxed().size == region.outlined().size == region.size[::-1]
    except InputError as error:
        check_sentence(error)


@fuzzing(100)
@given(damages)
def test_hierarchies(place: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write(place / "hierarchy.json", damage(b'{"p": ["a", "b"], "q": ["c"]}'))
    try:
        check_hierarchy(read_hierarchy(path), ["a", "b", "c"])
    except InputError as error:
        check_sentence(error)


@fuzzing(50)
@given(st.binary(max_size=30) | st.text().map(str.encode))
def test_class_names(place: Path, content: bytes) -> None:
    options = ModelOptions(class_names=write(place / "names.txt", content))
    try:
        assert all(isinstance(name, str) for name in options._names() or ())
    except InputError as error:
        check_sentence(error)


@fuzzing(100)
@given(st.data())
def test_saved_data_sets(place: Path, data: Any) -> None:
    whole = place / "saved"
    if not whole.exists():
        ROWS.save_to_disk(whole)
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = data.draw(damages)(files[name])
    for file, content in files.items():
        write(place / "copy" / file, content)
    read_or_refused(f"hf:{place}/copy")
