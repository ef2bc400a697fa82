"""Images: one interface over Hugging Face data sets, local files, the digits, and tensors."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vit_clt.digits import CLASS_NAMES as DIGITS_CLASSES
from vit_clt.digits import digits_arrays
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.prompts import CIFAR10_CLASSES, CIFAR100_CLASSES

# form -> Hub repository, image column, label column, class names as prompted
HUB_FORMS = {
    "cifar10": ("uoft-cs/cifar10", "img", "label", CIFAR10_CLASSES),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label", CIFAR100_CLASSES),
}
FORMS = ["digits", *HUB_FORMS, "parquet:PATH", "imagefolder:PATH", "hf:NAME"]
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
    """Images already preprocessed; labels default to -1 (unknown)."""

    def __init__(
        self,
        images: Float[Tensor, "image 3 height width"],
        labels: Int[Tensor, " image"] | None = None,
        class_names: Sequence[str] = (),
        name: str = "tensor",
    ):
        self.name = name
        self.class_names = list(class_names)
        self.images = images
        self.labels = torch.full((len(images),), -1) if labels is None else labels

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images and labels of these rows."""
        index = torch.as_tensor(rows)
        return self.images[index], self.labels[index]


class DecodedImages(ImageData):
    """Images decoded from rows on demand and put through the model's own preprocessing."""

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
        self._transform = transform
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
        return torch.stack([self._transform(image) for image in found]), labels

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

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images and labels of these of the chosen rows."""
        return self._data.batch([self._rows[row] for row in rows])


def load_data(
    form: str,
    *,
    vit: HookedViT,
    split: str = "test",
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageData:
    """Images in the preprocessing of `vit`.

    Args:
        form: "digits" (offline), "cifar10", "cifar100" (from the Hub), "parquet:PATH" (a file, or a
            folder of SPLIT*.parquet), "imagefolder:PATH" or "hf:NAME".
        vit: whose preprocessing is applied.
        split: which split; a single parquet file is its own split.
        limit: keep the first rows only.
        image_column, label_column: by default the columns typed Image and ClassLabel. Without a
            label column labels are -1: enough for training and scores.
        class_names: by default those the data set carries.

    Raises:
        InputError: unknown form, split or column, nothing there, or no rows.
    """
    if vit.preprocess is None:
        raise InputError("vit has no preprocessing; expected one from HookedViT.from_open_clip.")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1.")
    if form == "digits":
        return _digits(vit.preprocess, split, limit, class_names)
    names = class_names
    if form in HUB_FORMS:
        place = ""
        repository, image_default, label_default, prompted = HUB_FORMS[form]
        dataset = _load("hf", repository, split)
        image_column, label_column = image_column or image_default, label_column or label_default
        names = class_names or prompted
    else:
        kind, _, place = form.partition(":")
        if kind not in ("parquet", "imagefolder", "hf") or not place:
            raise InputError(f'data is "{form}"; expected one of {", ".join(FORMS)}.')
        dataset = _load(kind, place, split)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    if not len(dataset):
        raise InputError(f"data {form} ({split}) has no rows; expected at least one.")
    for column, feature in dataset.features.items():
        # how pandas writes encoded images: bytes and path, without the type
        if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
            dataset = _as_images(dataset, column)
    image_column = _column(dataset, "image", image_column)
    label_column = _column(dataset, "label", label_column)
    if names is None and label_column is not None:
        names = getattr(dataset.features[label_column], "names", None)

    def fetch(rows: list[int]) -> tuple[list[Any], list[Any]]:
        found = dataset[rows]
        return found[image_column], found[label_column] if label_column else [-1] * len(rows)

    # a single file is its own split: calling training images "test" would be a false label
    name = form if form.startswith("parquet:") and Path(place).is_file() else f"{form} ({split})"
    data = DecodedImages(fetch, len(dataset), vit.preprocess, names or [], name)
    data.split = None if name == form else split
    return data


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
            raise InputError("images is empty; expected at least one batch.")
        labels = None if batches[0][1] is None else torch.cat([b[1] for b in batches])
        names = getattr(images, "class_names", ())
        data = TensorImages(torch.cat([b[0] for b in batches]), labels, names)
    if not len(data):
        raise InputError("images is empty; expected at least one image.")
    return data


def _digits(
    transform: Callable[[Image.Image], Tensor],
    split: str,
    limit: int | None,
    class_names: Sequence[str] | None,
) -> ImageData:
    if split not in ("train", "test"):
        raise InputError(f'split is "{split}"; digits has "train" and "test".')
    pixels, labels = (values[:limit] for values in digits_arrays(split))

    def fetch(rows: list[int]) -> tuple[list[Image.Image], list[int]]:
        return [Image.fromarray(p) for p in pixels[rows]], np.asarray(labels)[rows].tolist()

    names = class_names or DIGITS_CLASSES
    data = DecodedImages(fetch, len(labels), transform, names, f"digits ({split})")
    data.split = split
    return data


def _load(kind: str, place: str, split: str) -> Any:
    import datasets

    try:
        if kind == "parquet":
            return datasets.load_dataset(
                "parquet", data_files=[str(f) for f in _parquet_files(place, split)], split="train"
            )
        if kind == "imagefolder":
            if not Path(place).is_dir():
                raise InputError(f"data is imagefolder:{place}; expected a folder there.")
            return datasets.load_dataset("imagefolder", data_dir=place, split=split)
        return datasets.load_dataset(place, split=split)
    except InputError:
        raise
    except Exception as error:  # the loader raises many kinds; each is one sentence to the user
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"data {kind}:{place} (split {split}) cannot be read: {type(error).__name__}: {reason}"
        ) from error


def _as_images(dataset: Any, column: str) -> Any:
    import datasets

    return dataset.cast_column(column, datasets.Image())


def _parquet_files(place: str, split: str) -> list[Path]:
    path = Path(place)
    if path.is_file():
        return [path]
    files = sorted(path.glob(f"{split}*.parquet"))
    if not files:
        raise InputError(
            f"data is parquet:{place}; expected a parquet file, or a folder with {split}*.parquet."
        )
    return files


def _column(dataset: Any, kind: str, name: str | None) -> str | None:
    found = list(dataset.column_names)
    if name is not None:
        if name not in found:
            raise InputError(f'{kind}-column is "{name}"; expected one of {", ".join(found)}.')
        return name
    typed = {"image": "Image", "label": "ClassLabel"}[kind]
    matches = [c for c in found if type(dataset.features[c]).__name__ == typed]
    matches = matches or [c for c in found if c == kind]
    if kind == "label" and not matches:
        return None  # training and scores need none; zero-shot readings refuse label -1
    if len(matches) != 1:
        raise InputError(
            f"{kind}-column is not given and {len(matches)} columns are of type {typed}; "
            f"expected one of {', '.join(found)}."
        )
    return matches[0]
