"""Labelled images by row: in memory, decoded on demand, or some rows of others.

Pictures of every bit depth and palette are brought to 8 bits a channel before preprocessing.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from vit_clt.errors import InputError

# PIL raises all of these for broken files, and a missing value is no image
_BROKEN = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    AttributeError,
    EOFError,
)


class UnreadableImage(InputError):
    """A row's image cannot be decoded or preprocessed."""


class ImageData(ABC):
    """Labelled images by row; iterating gives (images, labels) batches in row order."""

    name: str
    split: str | None = None
    """None where the data is its own split."""
    class_names: list[str]
    label_sets: list[frozenset[int]] | None = None
    """Every class that a row's image shows, where known (COCO); its label is one of them."""
    factors: Mapping[str, Int[Tensor, " image"]] | None = None
    """What else is known of each row's image, by name (adding: its digits, "left" and "right")."""
    transform: Callable[[Image.Image], Tensor] | None = None
    """The preprocessing they went through, where known: `vit_clt.data.check_prepared`."""
    left_out: int = 0
    """Images of the source that are no rows, as they have no label (COCO: no box)."""
    batch_size: int = 64

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(
        self, rows: Sequence[int]
    ) -> tuple[Float[Tensor, "batch 3 height width"], Int[Tensor, " batch"]]:
        """The preprocessed images and labels of these rows."""

    def readable(
        self, rows: Sequence[int]
    ) -> tuple[Float[Tensor, "batch 3 height width"] | None, list[int]]:
        """The images of those rows that can be read (None if none can), and their positions."""
        try:
            return self.batch(rows)[0], list(range(len(rows)))
        except UnreadableImage:
            found = {}
            for position, row in enumerate(rows):
                with contextlib.suppress(UnreadableImage):
                    found[position] = self.batch([row])[0]
            return torch.cat(list(found.values())) if found else None, list(found)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self), self.batch_size):
            yield self.batch(range(start, min(start + self.batch_size, len(self))))


class TensorImages(ImageData):
    """Images already preprocessed, kept on the CPU; labels default to -1 (unknown)."""

    def __init__(
        self,
        images: Float[Tensor, "image 3 height width"],
        labels: Int[Tensor, " image"] | None = None,
        class_names: Sequence[str] = (),
        name: str = "tensor",
    ):
        self.name = name
        self.class_names = list(class_names)
        # where processes that load batches can read them, and pin what goes to a GPU
        self.images = images.cpu()
        self.labels = torch.full((len(images),), -1) if labels is None else labels.cpu()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images and labels of these rows."""
        index = torch.as_tensor(rows)
        return self.images[index], self.labels[index]


class DecodedImages(ImageData):
    """Images decoded from rows on demand and put through the model's own preprocessing.

    Other depths than 8 bits and palettes are converted first (`vit_clt.data.images`).
    """

    transform: Callable[[Image.Image], Tensor]

    def __init__(
        self,
        fetch: Callable[[list[int]], tuple[list[Any], list[Any]]],
        n: int,
        transform: Callable[[Image.Image], Tensor],
        class_names: Sequence[str],
        name: str,
    ):
        self._fetch = fetch
        self._n = n
        self.transform = transform
        self.class_names = list(class_names)
        self.name = name

    def __len__(self) -> int:
        return self._n

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode and preprocess these rows."""
        try:
            images, labels = self._decode(rows)
        except _BROKEN as error:
            row, reason = self._first_broken(rows, error)
            raise UnreadableImage(
                f"{self.name}: row {row} holds an image that cannot be read: {reason}."
            ) from error
        for label in labels:
            if not isinstance(label, int):
                raise InputError(f"labels of {self.name} hold {label!r}; expected class numbers.")
        return images, torch.tensor(labels)

    def _decode(self, rows: Sequence[int]) -> tuple[Tensor, list[Any]]:
        found, labels = self._fetch(list(rows))
        return torch.stack([self.transform(eight_bit(image)) for image in found]), labels

    def _first_broken(self, rows: Sequence[int], error: Exception) -> tuple[int, Exception]:
        # a data set decodes many rows at once and does not say which of them failed
        for row in rows:
            try:
                self._decode([row])
            except _BROKEN as found:
                return row, found
        return rows[0], error


class ImageRows(ImageData):
    """Some rows of other images, in the order given."""

    def __init__(self, data: ImageData, rows: Sequence[int]):
        self._data = data
        self._rows = list(rows)
        self.name, self.split, self.class_names = data.name, data.split, data.class_names
        self.transform = data.transform
        if data.label_sets is not None:
            self.label_sets = [data.label_sets[row] for row in self._rows]
        if data.factors is not None:
            self.factors = {name: values[self._rows] for name, values in data.factors.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images and labels of these of the chosen rows."""
        return self._data.batch([self._rows[row] for row in rows])


def as_image_data(images: ImageData | Tensor | Iterable[Any]) -> ImageData:
    """ImageData as it is; a tensor, or batches of images or (images, labels), gathered in memory.

    Raises:
        InputError: no images.
    """
    if isinstance(images, ImageData):
        data = images
    elif isinstance(images, Tensor):
        data = TensorImages(images)
    else:
        batches = [b if isinstance(b, tuple | list) else (b, None) for b in images]
        if not batches:
            raise InputError("images", "is empty; expected at least one batch.")
        labels = None if batches[0][1] is None else torch.cat([b[1] for b in batches])
        names = getattr(images, "class_names", ())
        data = TensorImages(torch.cat([b[0] for b in batches]), labels, names)
    if not len(data):
        raise InputError("images", "is empty; expected at least one image.")
    return data


def eight_bit(image: Image.Image) -> Image.Image:
    """The same picture in a mode that PIL interpolates and converts to RGB without loss of range.

    - 16-bit grey (modes I;16, I;16B, I;16L, I;16N, and I with values up to 65,535) becomes 8-bit
      grey, round(v / 257): 0 stays 0, 65,535 becomes 255.
    - palette images become RGB, or RGBA where the palette is transparent, and 1-bit images become
      grey; as they are, PIL resizes both by nearest neighbour.
    - all others are returned as they are: grey, grey with alpha, RGB, RGBA (the preprocessing drops
      alpha) and CMYK (which it converts). PIL reads 16-bit colour PNGs at 8 bits itself.

    Of an animation this is the frame that is current: the first, when just opened.

    Raises:
        ValueError: 32-bit values, whose range is not known.
    """
    if isinstance(image, ImageFile.ImageFile):
        with image:  # of an animation PIL keeps the file open, for the other frames
            image = image.copy()
    if image.mode in ("P", "PA"):
        transparent = image.mode == "PA" or "transparency" in image.info
        return image.convert("RGBA" if transparent else "RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        sixteen = image.mode != "F" and values.min() >= 0 and values.max() <= 65535
        if not sixteen:
            raise ValueError(
                f"its values run from {values.min()} to {values.max()} in mode {image.mode}, "
                "expected 8 or 16 bits a channel"
            )
        # PIL's own conversion cuts values off at 255, so that most of the image is white
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    return image
