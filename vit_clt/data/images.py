"""Labelled images by index: in memory, decoded on demand, or some of another data set.

Images of every bit depth and palette are converted to 8 bits a channel before preprocessing.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageFile
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.inputs import reading, reason

if TYPE_CHECKING:
    from vit_clt.data.coco_regions import Region


class UnreadableImage(InputError):
    """An image cannot be decoded or preprocessed."""


class ImageData(ABC):
    """Labelled images by index; iterating gives (images, labels) batches in that order."""

    name: str
    split: str | None = None
    """The split; None where the data has no splits (one file, or tensors)."""
    class_names: list[str]
    label_sets: list[frozenset[int]] | None = None
    """By index, every class that the image shows (COCO); the label is one of them."""
    factors: Mapping[str, Int[Tensor, " image"]] | None = None
    """Further known facts of each image, by name (adding: its digits, "left" and "right")."""
    regions: Callable[[], Sequence[Sequence[Region]]] | None = None
    """Reads the annotated regions of every image, by index, where the data have them (COCO)."""
    transform: Callable[[Image.Image], Tensor] | None = None
    """The preprocessing of the images, where known; `check_prepared` compares it with a ViT's."""
    left_out: int = 0
    """Number of images that are left out because they have no label (COCO: no box)."""
    remarks: Sequence[str] = ()
    """What was left out, and how much, one phrase each; commands print them."""
    batch_size: int = 64

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(
        self, indices: Sequence[int]
    ) -> tuple[Float[Tensor, "batch 3 height width"], Int[Tensor, " batch"]]:
        """The preprocessed images and the labels of the images with these indices.

        Raises:
            UnreadableImage: an image cannot be read.
        """

    def readable(
        self, indices: Sequence[int]
    ) -> tuple[Float[Tensor, "batch 3 height width"] | None, list[int]]:
        """The images that can be read (None if none can), and their positions in `indices`."""
        try:
            return self.batch(indices)[0], list(range(len(indices)))
        except UnreadableImage:
            images = {}
            for position, index in enumerate(indices):
                with contextlib.suppress(UnreadableImage):
                    images[position] = self.batch([index])[0]
            return torch.cat(list(images.values())) if images else None, list(images)

    def contents(self, indices: Sequence[int]) -> list[bytes]:
        """Bytes of each image that change when the image does, for `data_fingerprint`.

        Data that is decoded on demand gives the stored bytes. These are the preprocessed pixels
        with their type and shape; those of an unreadable image are empty.
        """
        images, positions = self.readable(indices)
        contents = [b""] * len(indices)
        for position, image in zip(positions, () if images is None else images.cpu(), strict=True):
            contents[position] = pixel_bytes(image)
        return contents

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.batch_size
        starts = range(0, len(self), size)
        return self.batches(range(start, min(start + size, len(self))) for start in starts)

    def batches(
        self, rows: Iterable[Sequence[int]]
    ) -> Iterator[tuple[Float[Tensor, "batch 3 height width"], Int[Tensor, " batch"]]]:
        """`batch` of each of `rows` in turn.

        Raises:
            UnreadableImage: an image cannot be read, when its batch is reached.
        """
        return map(self.batch, rows)

    def evenly_spaced(self, most: int) -> ImageData:
        """At most so many of the images, evenly spaced: all of them where there are no more."""
        if most >= len(self):
            return self
        some = ImageSubset(self, evenly_spaced(len(self), most))
        some.batch_size = self.batch_size
        return some


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
        # on the CPU the processes that load batches can read them and pin them for a GPU
        self.images = images.cpu()
        self.labels = torch.full((len(images),), -1) if labels is None else labels.cpu()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images and labels with these indices."""
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]

    def contents(self, indices: Sequence[int]) -> list[bytes]:
        """The pixels of each image."""
        return [pixel_bytes(self.images[index]) for index in indices]


class DecodedImages(ImageData):
    """Images that are decoded on demand and preprocessed as the model needs.

    Other bit depths than 8 and palettes are converted first (`eight_bit`).

    Args:
        fetch: gives the images and labels of a list of indices. It is called in a thread beside
            while batches are iterated. Its method `contents(indices)`, if it has one, gives the
            stored bytes of the images (`ImageData.contents`).
        n: number of images.
        transform: the model's preprocessing.
        class_names: names of the classes in label order.
        name: name of the data, for messages and results.
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

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode and preprocess the images with these indices."""
        try:
            images, labels = self._read(indices)
        except InputError as error:
            index, cause = self._first_broken(indices, error)
            raise UnreadableImage(
                f"{self.name}: row {index} holds an image that cannot be read: {reason(cause)}."
            ) from error
        for label in labels:
            if not isinstance(label, int):
                raise InputError(f"labels of {self.name} hold {label!r}; expected class numbers.")
        return images, torch.tensor(labels)

    def contents(self, indices: Sequence[int]) -> list[bytes]:
        """The stored bytes of each image, where they are known; otherwise its pixels."""
        stored = getattr(self._fetch, "contents", None)
        return super().contents(indices) if stored is None else stored(list(indices))

    def batches(self, rows: Iterable[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """As of `ImageData`; each is read in a thread while the one before is worked on."""
        with ThreadPoolExecutor(1, "images") as reader:
            ahead: deque[Future[tuple[Tensor, Tensor]]] = deque()
            for indices in rows:
                ahead.append(reader.submit(self.batch, indices))
                if len(ahead) == 2:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _read(self, indices: Sequence[int]) -> tuple[Tensor, list[Any]]:
        with reading(self.name, "images"):
            images, labels = self._fetch(list(indices))
            return torch.stack([self.transform(eight_bit(image)) for image in images]), labels

    def _first_broken(self, indices: Sequence[int], error: InputError) -> tuple[int, BaseException]:
        # many images are decoded at once, and the error does not say which of them failed
        for index in indices:
            try:
                self._read([index])
            except InputError as found:
                return index, found.__cause__ or found
        return indices[0], error.__cause__ or error


class ImageSubset(ImageData):
    """Some images of another data set, in the order given."""

    def __init__(self, data: ImageData, indices: Sequence[int]):
        self._data = data
        self._indices = list(indices)
        self.name, self.split, self.class_names = data.name, data.split, data.class_names
        self.transform = data.transform
        if data.label_sets is not None:
            self.label_sets = [data.label_sets[index] for index in self._indices]
        if data.regions is not None:
            self.regions = partial(_some, data.regions, self._indices)
        if data.factors is not None:
            self.factors = {name: values[self._indices] for name, values in data.factors.items()}

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images and labels at these places among the indices given."""
        return self._data.batch([self._indices[index] for index in indices])

    def batches(self, rows: Iterable[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches at these places among the indices given, as the data set reads them."""
        return self._data.batches([self._indices[index] for index in each] for each in rows)

    def contents(self, indices: Sequence[int]) -> list[bytes]:
        """The bytes of these images."""
        return self._data.contents([self._indices[index] for index in indices])


def _some(read: Callable[[], Sequence[Any]], indices: Sequence[int]) -> list[Any]:
    every = read()
    return [every[index] for index in indices]


def as_image_data(images: ImageData | Tensor | Iterable[Any]) -> ImageData:
    """An `ImageData` of these images: an `ImageData`, a tensor, or batches of images or of (images,
    labels), which are gathered in memory.

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


def evenly_spaced(n: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to n - 1 in ascending order: first, last, and even steps."""
    count = min(n, most)
    return [i * (n - 1) // max(count - 1, 1) for i in range(count)]


def pixel_bytes(image: Float[Tensor, "3 height width"]) -> bytes:
    """The type, the shape and the values of an image on the CPU, as bytes."""
    values = image.contiguous().view(torch.uint8).numpy().tobytes()
    return f"{image.dtype} {tuple(image.shape)} ".encode() + values


def eight_bit(image: Image.Image) -> Image.Image:
    """The same image in a mode that PIL interpolates and converts to RGB without loss of range.

    - 16-bit grey (modes I;16, I;16B, I;16L, I;16N, and I with values up to 65,535) becomes 8-bit
      grey, round(v / 257): 0 stays 0, 65,535 becomes 255.
    - palette images become RGB, or RGBA where the palette is transparent, and 1-bit images become
      grey; PIL would resize both by nearest neighbour otherwise.
    - all others are returned unchanged: grey, grey with alpha, RGB, RGBA (the preprocessing drops
      alpha) and CMYK (which it converts). PIL reads 16-bit colour PNGs at 8 bits itself.

    For an animation this is the current frame, which is the first when it has just been opened.

    Raises:
        ValueError: 32-bit values, whose range is not known.
    """
    if isinstance(image, ImageFile.ImageFile):
        with image:  # PIL would keep the file of an animation open, for its other frames
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
        # PIL's own conversion clips values at 255, so that most of the image would be white
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    return image
