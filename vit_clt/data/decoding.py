"""From a stored value, such as the bytes of a JPEG, to a PIL image.

The files may come from anywhere. Only formats that Pillow decodes itself are opened (EPS would run
Ghostscript), and a path in a row of a table is followed only inside the folder of the table.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# these start another program, or hold anything but one picture
REFUSED_FORMATS = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "IPTC", "MIC", "MPEG", "WMF"}
CHANNELS = (1, 3, 4)


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - REFUSED_FORMATS))


@cache
def image_extensions() -> frozenset[str]:
    """The extensions of files that are read, in lower case with the dot."""
    extensions = Image.registered_extensions()
    return frozenset(e for e, form in extensions.items() if form in image_formats())


@runtime_checkable
class Values(Protocol):
    """Stored images by row, each as `decoded` takes it; it can be sent to another process."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


@dataclass(frozen=True)
class GreyImages:
    """Grey images by row, of an array "image row column"."""

    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row])


@dataclass(frozen=True)
class StoredImages:
    """Gives the images and labels of rows; `DecodedImages` calls it."""

    values: Values
    labels: Sequence[int]
    folder: Path | None = None
    """The folder in which the paths among the values lie."""

    def __call__(self, rows: list[int]) -> tuple[list[Image.Image], list[int]]:
        """The decoded images and the labels of these rows."""
        images = [decoded(self.values[row], self.folder) for row in rows]
        return images, [self.labels[row] for row in rows]

    def contents(self, rows: Sequence[int]) -> list[bytes]:
        """The stored bytes of these rows, not decoded; those of a file that is gone are empty."""
        return [content(self.values[row], self.folder) for row in rows]


def decoded(value: Any, folder: Path | None = None) -> Image.Image:
    """The image of a stored value, turned as its EXIF orientation says.

    Args:
        value: encoded bytes; a `Path`; a text, which is a path below `folder`; a dict of "bytes"
            and "path", of which the bytes count if there are any; 8-bit pixels, "row column" or
            "row column channel" or "channel row column", as lists or an array; or a PIL image.
        folder: of a path.

    Raises:
        ValueError: the value is none of these, or leads out of the folder. Pillow raises many
            others for files that are no images.
    """
    value = _plain(value, folder)
    if isinstance(value, list | np.ndarray):
        return _from_pixels(value)
    if isinstance(value, Image.Image):
        return _upright(value)
    if isinstance(value, bytes):
        return _opened(io.BytesIO(value), "it")
    with open(value, "rb") as file:
        return _opened(file, str(value))


def content(value: Any, folder: Path | None = None) -> bytes:
    """The stored bytes of an image, not decoded; empty if it is missing or refused."""
    try:
        value = _plain(value, folder)
        if isinstance(value, Path):
            with open(value, "rb", buffering=0) as file:
                return file.read()
    except (OSError, ValueError):
        return b""
    if isinstance(value, Image.Image):
        return value.tobytes()
    return value if isinstance(value, bytes) else repr(value).encode()


def _opened(file: io.BytesIO | io.BufferedReader, name: str) -> Image.Image:
    try:
        image = Image.open(file, formats=image_formats())
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image in a format that is read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, the most that Pillow "
            "opens; expected a smaller one (PIL.Image.MAX_IMAGE_PIXELS raises the limit)"
        ) from error
    image.load()
    return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    if image.getexif().get(ExifTags.Base.Orientation) is not None:
        return ImageOps.exif_transpose(image)
    return image


def _plain(value: Any, folder: Path | None) -> Any:
    if isinstance(value, dict):
        stored = value.get("bytes")
        value = value.get("path") if stored is None else stored
    if value is None:
        raise ValueError("it is missing")
    if isinstance(value, str):
        return _inside(value, folder)
    if not isinstance(value, bytes | Path | list | np.ndarray | Image.Image):
        raise ValueError(
            f"it is a {type(value).__name__}, expected encoded bytes, a path or pixels"
        )
    return value


def _inside(text: str, folder: Path | None) -> Path:
    path = Path(text)
    if folder is None or "://" in text or (path.is_absolute() and folder != Path("/")):
        raise ValueError(
            f'its path is "{text[:80]}", expected one relative to the folder of the table'
        )
    path, folder = (folder / path).resolve(), folder.resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f'its path "{text[:80]}" leads out of {folder}')
    return path


def _from_pixels(values: Any) -> Image.Image:
    pixels = np.asarray(values)
    if pixels.ndim == 3 and pixels.shape[2] not in CHANNELS and pixels.shape[0] in CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    grey = pixels.ndim == 2
    if not grey and (pixels.ndim != 3 or pixels.shape[2] not in CHANNELS):
        raise ValueError(f"it is an array of shape {pixels.shape}, expected rows of pixels")
    if pixels.dtype.kind not in "iu" or not pixels.size or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError("its pixels are not whole numbers from 0 to 255")
    if not grey and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))
