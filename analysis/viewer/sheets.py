"""Images side by side on sheets, so that a page with thousands of images reads a few files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT

SIDE = 64
"""Longest side of an image in pixels; smaller ones keep their size."""
ACROSS = 16
"""Images across and down a sheet."""


def sheets(
    vit: HookedViT, data: ImageData, rows: Sequence[int]
) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Sheets of 16 x 16 images in row order: file name, PNG, height and width of one image.

    Raises:
        InputError: a model without its preprocessing.
    """
    per_sheet = ACROSS**2
    for sheet_number, start in enumerate(range(0, len(rows), per_sheet)):
        some = list(rows[start : start + per_sheet])
        small = []
        for first in range(0, len(some), data.batch_size):
            batch = data.batch(some[first : first + data.batch_size])[0]
            small += [_small(image) for image in pixels(vit, batch)]
        height, width = small[0].shape[:2]
        down = -(-len(small) // ACROSS)
        sheet = np.full((down * height, ACROSS * width, 3), 255, np.uint8)
        for i, image in enumerate(small):
            y, x = i // ACROSS * height, i % ACROSS * width
            sheet[y : y + height, x : x + width] = image
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "PNG", optimize=True)
        yield f"images/sheet-{sheet_number:03}.png", file.getvalue(), (height, width)


def _small(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "down across 3"]:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
