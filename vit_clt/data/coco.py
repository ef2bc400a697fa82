"""COCO as single-label images, with the set of all categories that an image shows.

An image's label is argmax over categories c of the sum of width * height over its boxes of c, in
pixels (ties go to the lowest category id). Overlaps count twice, and crowd regions count as
boxes. Images without a box have no label: they are left out, and counted in `ImageData.left_out`.
`ImageData.label_sets` holds every category with a box, for "any hit" accuracy.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from vit_clt.data.images import DecodedImages
from vit_clt.data.prompts import COCO_CLASSES
from vit_clt.data.tables import read_table
from vit_clt.errors import InputError

HUB = "detection-datasets/coco"


@dataclass
class SingleLabels:
    """The label, and all categories, of the images that have a label."""

    rows: list[int] = field(default_factory=list)
    """Rows of the labelled images among all images."""
    labels: list[int] = field(default_factory=list)
    label_sets: list[frozenset[int]] = field(default_factory=list)
    left_out: int = 0


def single_labels(images: Iterable[Iterable[tuple[int, float]]], limit: int | None) -> SingleLabels:
    """Label images by their (category, box area) pairs, up to `limit` labelled images."""
    labels = SingleLabels()
    for row, boxes in enumerate(images):
        if limit is not None and len(labels.rows) == limit:
            break
        areas: dict[int, float] = defaultdict(float)
        for category, area in boxes:
            areas[category] += area
        if not areas:
            labels.left_out += 1
            continue
        labels.rows.append(row)
        labels.labels.append(min(areas, key=lambda c: (-areas[c], c)))
        labels.label_sets.append(frozenset(areas))
    return labels


def local_coco(
    place: str, split: str, transform: Callable[[Image.Image], Tensor], limit: int | None
) -> DecodedImages:
    """COCO in its official layout: `annotations/instances_{split}2017.json`, `{split}2017/*.jpg`.

    Class names are the categories of the file in the order of their ids.

    Raises:
        InputError: files are missing, there is no such split, or the annotations lack images,
            categories or boxes.
    """
    folder = Path(place)
    path = folder / "annotations" / f"instances_{split}2017.json"
    if not path.is_file():
        raise InputError(_no_annotations(folder, split))
    document = _read(path)
    categories = sorted(document["categories"], key=lambda category: category["id"])
    number = {category["id"]: i for i, category in enumerate(categories)}
    boxes: dict[Any, list[tuple[int, float]]] = defaultdict(list)
    for i, annotation in enumerate(document["annotations"]):
        image, category, area = _box(path, i, annotation, number)
        boxes[image].append((category, area))
    images = document["images"]
    labels = single_labels((boxes.get(image["id"], []) for image in images), limit)
    if not labels.rows:
        raise InputError(f"{path} has no image with a box; expected at least one.")
    pictures = folder / f"{split}2017"
    files = [images[row]["file_name"] for row in labels.rows]
    _check_present(pictures, files)

    def fetch(rows: list[int]) -> tuple[list[Image.Image], list[int]]:
        return [_open(pictures / files[row]) for row in rows], [labels.labels[row] for row in rows]

    names = [category["name"] for category in categories]
    data = DecodedImages(fetch, len(files), transform, names, f"coco:{place} ({split})")
    data.label_sets, data.left_out = labels.label_sets, labels.left_out
    return data


def hub_coco(
    split: str, transform: Callable[[Image.Image], Tensor], limit: int | None
) -> DecodedImages:
    """COCO from the Hub, whose boxes are corners: (left, top, right, bottom).

    Raises:
        InputError: it cannot be read.
    """
    table = read_table("hf", HUB, split)
    labels = single_labels(
        (_areas(row["objects"]) for row in table.select_columns("objects")), limit
    )
    if not labels.rows:
        raise InputError(f"coco ({split}) has no image with a box; expected at least one.")
    table = table.select(labels.rows)

    def fetch(rows: list[int]) -> tuple[list[Image.Image], list[int]]:
        return table[rows]["image"], [labels.labels[row] for row in rows]

    data = DecodedImages(fetch, len(labels.rows), transform, COCO_CLASSES, f"coco ({split})")
    data.label_sets, data.left_out = labels.label_sets, labels.left_out
    return data


def _open(path: Path) -> Image.Image:
    # turned by the EXIF orientation, as Hugging Face datasets does for the other forms
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image)


def _areas(objects: dict[str, list[Any]]) -> Iterable[tuple[int, float]]:
    for category, (left, top, right, bottom) in zip(
        objects["category"], objects["bbox"], strict=True
    ):
        yield category, (right - left) * (bottom - top)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from error
    expected = {"images": ("id", "file_name"), "annotations": (), "categories": ("id", "name")}
    for key, fields in expected.items():
        entries = document.get(key) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not entries:
            raise InputError(f'{path} has no "{key}"; expected COCO instances, with {key}.')
        for entry in entries:
            if not isinstance(entry, dict) or any(name not in entry for name in fields):
                raise InputError(
                    f'{path} has {str(entry)[:80]} in "{key}"; expected {" and ".join(fields)}.'
                )
    return document


def _box(
    path: Path, i: int, annotation: dict[str, Any], number: dict[Any, int]
) -> tuple[Any, int, float]:
    for name in ("image_id", "category_id", "bbox"):
        if name not in annotation:
            raise InputError(
                f'{path}: annotation {i} has no "{name}"; expected COCO instances, with boxes.'
            )
    category, bbox = annotation["category_id"], annotation["bbox"]
    if category not in number:
        raise InputError(
            f'{path}: annotation {i} has category_id {category}, which is not in "categories".'
        )
    numbers = isinstance(bbox, list) and all(isinstance(v, int | float) for v in bbox)
    # "not >= 0" also catches NaN
    if not numbers or len(bbox) != 4 or not (bbox[2] >= 0 and bbox[3] >= 0):
        raise InputError(
            f"{path}: annotation {i} has bbox {str(bbox)[:60]}; expected left, top, width, height."
        )
    return annotation["image_id"], number[category], float(bbox[2] * bbox[3])


def _check_present(folder: Path, files: list[str]) -> None:
    # one listing is faster than 100,000 checks of single files on a network file system
    present = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    missing = [file for file in files if file not in present]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(files)} images are missing in {folder}, the first "
            f"{missing[0]}; expected every image that the annotations name."
        )


def _no_annotations(folder: Path, split: str) -> str:
    splits = sorted(
        file.stem.removeprefix("instances_").removesuffix("2017")
        for file in (folder / "annotations").glob("instances_*2017.json")
    )
    if splits:
        return f'split is "{split}"; coco:{folder} has {" and ".join(splits)}.'
    return f"data is coco:{folder}; expected annotations/instances_{split}2017.json in that folder."
