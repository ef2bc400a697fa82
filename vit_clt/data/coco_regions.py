"""COCO's boxes and outlines of each image: where its categories are.

An outline is a list of polygons, or, of a crowd, run lengths: pixels column after column, outside
and inside in turn, beginning outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vit_clt.errors import InputError
from vit_clt.inputs import read_json, reading

MOST_BYTES = 4_000_000_000
"""Bound of the annotations; those of COCO's training images have 450 MB."""
_MOST_SIDE = 100_000


@dataclass(frozen=True)
class Region:
    """One object of an image, in pixels of the stored image."""

    category: int
    """Number of the category, as labels are numbered."""
    size: tuple[int, int]
    """Height and width of the image."""
    box: tuple[float, float, float, float]
    """Left, top, width, height."""
    polygons: tuple[tuple[float, ...], ...]
    """Each x, y, x, y, ...; none of a crowd."""
    runs: tuple[int, ...] = ()
    """Run lengths of a crowd's outline."""

    def boxed(self) -> Image.Image:
        """The box, white on black."""
        left, top, width, height = self.box
        image = Image.new("L", self.size[::-1])
        if width > 0 and height > 0:
            # PIL draws both ends; a pixel belongs to the box if its middle does
            corners = [left, top, left + width, top + height]
            first, last = (np.ceil(np.array(corners[i : i + 2]) - 0.5) for i in (0, 2))
            if (last > first).all():
                ImageDraw.Draw(image).rectangle([*first, *(last - 1)], fill=255)
        return image

    def outlined(self) -> Image.Image:
        """The area within the outline, white on black; the box where there is no outline."""
        if self.runs:
            inside = np.arange(len(self.runs)) % 2 == 1
            pixels = np.repeat(inside, self.runs).reshape(self.size[::-1]).T
            return Image.fromarray(np.where(pixels, 255, 0).astype(np.uint8))
        if not self.polygons:
            return self.boxed()
        image = Image.new("L", self.size[::-1])
        for polygon in self.polygons:
            ImageDraw.Draw(image).polygon(polygon, fill=255)
        return image


def read_regions(path: Path, image_ids: Sequence[Any]) -> list[list[Region]]:
    """The regions of some images, in the order of `image_ids`.

    Annotations without a box and an outline are left out.

    Args:
        path: COCO's instances, which were read for the labels of these images.
        image_ids: the images.

    Raises:
        InputError: an image has no height and width, or an outline is none.
    """
    with reading(path, "COCO instances", field="data"):
        document = read_json(path, MOST_BYTES)
        ids = sorted(each["id"] for each in document["categories"])
        numbers = {each: number for number, each in enumerate(ids)}
        sizes = {each["id"]: _size(path, each) for each in document["images"]}
        found: dict[Any, list[Region]] = defaultdict(list)
        wanted = set(image_ids)
        for i, annotation in enumerate(document["annotations"]):
            image = annotation["image_id"]
            if image in wanted and (annotation["bbox"] or annotation.get("segmentation")):
                number = numbers[annotation["category_id"]]
                found[image].append(_region(path, i, annotation, number, sizes[image]))
    return [found[image] for image in image_ids]


def _size(path: Path, image: dict[str, Any]) -> tuple[int, int]:
    size = image.get("height"), image.get("width")
    for side in size:
        if type(side) is not int or not 0 < side < _MOST_SIDE:
            raise InputError(
                "data",
                f"holds {path}, where image {str(image['id'])[:60]} has height and width "
                f"{str(size)[:60]}; expected pixels, as boxes are in them.",
            )
    return size  # type: ignore[return-value]


def _region(
    path: Path, i: int, annotation: dict[str, Any], number: int, size: tuple[int, int]
) -> Region:
    box = tuple(float(value) for value in annotation["bbox"] or ())
    outline = annotation.get("segmentation") or []
    refused = InputError(
        "data",
        f"holds {path}, where annotation {i} has segmentation {str(outline)[:60]}; expected "
        f"polygons x, y, x, y, ..., or the run lengths of all {size[0] * size[1]} pixels.",
    )
    if isinstance(outline, dict):
        # compressed run lengths are a text, which COCO's own files have nowhere
        runs = outline.get("counts")
        if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
            raise refused
        if outline.get("size") != list(size) or sum(runs) != size[0] * size[1]:
            raise refused
        return Region(number, size, box or (0.0, 0.0, 0.0, 0.0), (), tuple(runs))  # type: ignore[arg-type]
    polygons = []
    for polygon in outline if isinstance(outline, list) else [None]:
        if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 4:
            raise refused
        if not all(type(v) in (int, float) and abs(v) < _MOST_SIDE for v in polygon):
            raise refused
        polygons.append(tuple(float(value) for value in polygon))
    if not box:  # the one around the outline
        x, y = (np.concatenate([polygon[i::2] for polygon in polygons]) for i in (0, 1))
        box = tuple(map(float, (x.min(), y.min(), np.ptp(x), np.ptp(y))))
    return Region(number, size, box, tuple(polygons))  # type: ignore[arg-type]
