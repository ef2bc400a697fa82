"""COCO as single-label images, with the set of all categories that an image shows.

An image's label is argmax over categories c of the sum of width * height over its boxes of c, in
pixels (ties go to the lowest category id). Overlaps count twice, and crowd regions count as
boxes; an outline without a box counts as the box around it. Images without a box have no label:
they are left out, and counted in `ImageData.left_out`.
`ImageData.label_sets` holds every category with a box, for "any hit" accuracy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vit_clt.data.coco_regions import MOST_BYTES, read_regions
from vit_clt.data.decoding import StoredImages
from vit_clt.data.images import DecodedImages
from vit_clt.data.local_files import coco_annotations
from vit_clt.data.prompts import COCO_CLASSES
from vit_clt.data.tables import hub_table
from vit_clt.errors import InputError
from vit_clt.inputs import read_json, reading

HUB = "detection-datasets/coco"
MOST_PIXELS = 1e9
"""Bound of a coordinate; no image is as wide."""


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
    path, pictures = coco_annotations(place, split)
    document = _read(path)
    categories = sorted(document["categories"], key=lambda category: category["id"])
    number = {category["id"]: i for i, category in enumerate(categories)}
    boxes: dict[Any, list[tuple[int, float]]] = defaultdict(list)
    without = 0
    for i, annotation in enumerate(document["annotations"]):
        image, category, area = _box(path, i, annotation, number)
        if area is None:
            without += 1
        else:
            boxes[image].append((category, area))
    images = document["images"]
    labels = single_labels((boxes.get(image["id"], []) for image in images), limit)
    if not labels.rows:
        raise InputError(f"{path} has no image with a box; expected at least one.")
    files = [images[row]["file_name"] for row in labels.rows]
    _check_present(pictures, files)
    names = [category["name"] for category in categories]
    fetch = StoredImages([pictures / file for file in files], labels.labels)
    data = DecodedImages(fetch, len(files), transform, names, f"coco:{place} ({split})")
    data.regions = partial(read_regions, path, [images[row]["id"] for row in labels.rows])
    remarks = [f"annotations without a box or an outline left out: {without}"] if without else []
    return _told(data, labels, remarks)


def hub_coco(
    split: str, transform: Callable[[Image.Image], Tensor], limit: int | None
) -> DecodedImages:
    """COCO from the Hub, whose boxes are corners: (left, top, right, bottom).

    Raises:
        InputError: it cannot be read.
    """
    table, _ = hub_table(HUB, split)
    with reading(table.name, "COCO's objects", field="data"):
        labels = single_labels(map(_areas, table.values("objects")), limit)
    if not labels.rows:
        raise InputError(f"coco ({split}) has no image with a box; expected at least one.")
    fetch = StoredImages(table.images("image", labels.rows), labels.labels, table.folder)
    data = DecodedImages(fetch, len(labels.rows), transform, COCO_CLASSES, f"coco ({split})")
    return _told(data, labels)


def _told(data: DecodedImages, labels: SingleLabels, remarks: Sequence[str] = ()) -> DecodedImages:
    data.label_sets, data.left_out = labels.label_sets, labels.left_out
    counted = [f"images without a box left out: {data.left_out}"] if data.left_out else []
    data.remarks = [*counted, *remarks]
    return data


def _areas(objects: dict[str, list[Any]]) -> Iterable[tuple[int, float]]:
    for category, (left, top, right, bottom) in zip(
        objects["category"], objects["bbox"], strict=True
    ):
        yield category, (right - left) * (bottom - top)


def _read(path: Path) -> dict[str, Any]:
    document = read_json(path, MOST_BYTES)
    expected = {"images": ("id", "file_name"), "annotations": (), "categories": ("id", "name")}
    for key, fields in expected.items():
        entries = document.get(key)
        if not isinstance(entries, list) or not entries:
            raise InputError(f'{path} has no "{key}"; expected COCO instances, with {key}.')
        for entry in entries:
            if not isinstance(entry, dict) or any(name not in entry for name in fields):
                raise InputError(
                    f'{path} has {str(entry)[:80]} in "{key}"; expected {" and ".join(fields)}.'
                )
            for name in fields:
                # ids are numbers as in COCO, or texts throughout; names are texts
                kinds = (str,) if name != "id" else (type(entries[0]["id"]),)
                if type(entry[name]) not in kinds or kinds[0] not in (int, str):
                    raise InputError(
                        f'{path} has {name} {str(entry[name])[:60]} in "{key}"; expected ids of '
                        "one type, numbers or texts, and names that are texts."
                    )
    return document


def _box(
    path: Path, i: int, annotation: Any, number: dict[Any, int]
) -> tuple[int | str, int, float | None]:
    """The image, the category's number and the area of an annotation, None without a box."""
    for name in ("image_id", "category_id", "bbox"):
        if not isinstance(annotation, dict) or name not in annotation:
            raise InputError(
                f'{path}: annotation {i} has no "{name}"; expected COCO instances, with boxes.'
            )
    image, category, bbox = (annotation[name] for name in ("image_id", "category_id", "bbox"))
    if type(image) not in (int, str) or type(category) not in (int, str) or category not in number:
        raise InputError(
            f"{path}: annotation {i} has image_id {str(image)[:60]} and category_id "
            f'{str(category)[:60]}, which is not in "categories".'
        )
    if bbox in ([], None):
        return image, number[category], _outline_area(annotation.get("segmentation"))
    if not _are_numbers(bbox) or len(bbox) != 4 or min(bbox[2:]) < 0:
        raise InputError(
            f"{path}: annotation {i} has bbox {str(bbox)[:60]}; expected left, top, width, height."
        )
    return image, number[category], float(bbox[2] * bbox[3])


def _outline_area(polygons: Any) -> float | None:
    """The area of the box around polygons, each x, y, x, y, ...; None if there are none."""
    if not isinstance(polygons, list) or not all(map(_are_numbers, polygons)):
        return None
    points = [polygon for polygon in polygons if len(polygon) >= 4 and len(polygon) % 2 == 0]
    if not points:
        return None
    sides = ([v for polygon in points for v in polygon[i::2]] for i in (0, 1))
    width, height = (max(values) - min(values) for values in sides)
    return float(width * height)


def _are_numbers(values: Any) -> bool:
    # the product of two such numbers is finite; NaN is not below the bound
    return isinstance(values, list) and all(
        type(v) in (int, float) and abs(v) < MOST_PIXELS for v in values
    )


def _check_present(folder: Path, files: list[str]) -> None:
    # one listing is faster than 100,000 checks of single files on a network file system
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts or "://" in name:
            raise InputError(f"{folder} holds no {name[:80]}; expected a file name in it.")
    inside = [Path(name) for name in files]
    present = {
        (parent / file.name)
        for parent in {file.parent for file in inside}
        if (folder / parent).is_dir()
        for file in (folder / parent).iterdir()
    }
    missing = [file for file in inside if file not in present]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(files)} images are missing in {folder}, the first "
            f"{missing[0]}; expected every image that the annotations name."
        )
