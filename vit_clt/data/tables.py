"""Rows read through Hugging Face datasets: the Hub, parquet files, folders of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from vit_clt.choices import check_choice
from vit_clt.data.images import DecodedImages
from vit_clt.errors import InputError

Kind = Literal["parquet", "imagefolder", "hf"]
Renumber = Callable[[Sequence[str]], Sequence[int]]


def read_table(kind: Kind, place: str, split: str) -> Any:
    """A `datasets.Dataset` of one split; images come as images, encoded or not.

    Raises:
        InputError: nothing there, no such split, or not what `kind` says.
    """
    import datasets

    try:
        if kind == "parquet":
            files = [str(f) for f in _parquet_files(place, split)]
            table = datasets.load_dataset("parquet", data_files=files, split="train")
        elif kind == "imagefolder":
            if not Path(place).is_dir():
                raise InputError("data", f"is imagefolder:{place}; expected a folder there.")
            table = datasets.load_dataset("imagefolder", data_dir=place, split=split)
        else:
            table = datasets.load_dataset(place, split=split)
    except InputError:
        raise
    except Exception as error:  # the loader raises many kinds; each is one sentence to the user
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            "data",
            f"{kind}:{place} (split {split}) cannot be read: {type(error).__name__}: {reason}",
        ) from error
    for column, feature in table.features.items():
        # how pandas writes encoded images: bytes and path, without the type
        if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
            table = table.cast_column(column, datasets.Image())
    return table


def local_kind(place: str) -> Kind:
    """Whether a path holds parquet files or a folder of images.

    Raises:
        InputError: nothing there.
    """
    path = Path(place)
    if path.is_file() or any(path.glob("*.parquet")):
        return "parquet"
    if not path.is_dir():
        raise InputError(
            f"{place} does not exist; expected a parquet file, a folder of them, or of images."
        )
    return "imagefolder"


def table_images(
    table: Any,
    transform: Callable[[Image.Image], Tensor],
    name: str,
    *,
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    prompted: Sequence[str] | None = None,
    renumber: Renumber | None = None,
) -> DecodedImages:
    """The rows of a table as images.

    Args:
        table: from `read_table`.
        transform: the model's preprocessing.
        name: of the data, for messages and results.
        limit: keep the first rows only.
        image_column, label_column: by default the columns typed Image and ClassLabel; without a
            label column labels are -1.
        class_names: by default `prompted`, or those of the label column.
        prompted: the class names of a data set that is known, in label order.
        renumber: class numbers of the label column's own names, where they may be in another order.

    Raises:
        InputError: no rows, no such column, or not a class name per label.
    """
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    if not len(table):
        raise InputError("data", f"{name} has no rows; expected at least one.")
    image_column = _column(table, "image", image_column)
    label_column = _column(table, "label", label_column)
    stored = None if label_column is None else getattr(table.features[label_column], "names", None)
    numbers = None if renumber is None or stored is None else list(renumber(stored))
    own = prompted if prompted is not None else stored
    if class_names is None:
        class_names = own or []
    elif own is not None:
        check_names(class_names, len(own), name)
    if class_names and label_column is not None:
        _check_labels(table, label_column, numbers, len(class_names), name)

    def fetch(rows: list[int]) -> tuple[list[Any], list[Any]]:
        found = table[rows]
        labels = found[label_column] if label_column else [-1] * len(rows)
        if numbers is not None:
            labels = [numbers[l] if isinstance(l, int) and l >= 0 else l for l in labels]
        return found[image_column], labels

    return DecodedImages(fetch, len(table), transform, class_names, name)


def check_names(names: Sequence[str], n_classes: int, name: str) -> None:
    """Raise InputError unless there is a name per class."""
    if len(names) != n_classes:
        raise InputError(
            "class_names",
            f"holds {len(names)} names; {name} has {n_classes} classes, expected as many names.",
        )


def _check_labels(
    table: Any, column: str, numbers: list[int] | None, n_names: int, name: str
) -> None:
    # one pass over the labels alone, so that an evaluation does not stop in its last batch
    found = [label for label in table.unique(column) if isinstance(label, int)]
    highest = max([numbers[l] if numbers and l >= 0 else l for l in found], default=-1)
    if highest >= n_names:
        raise InputError(
            "class_names",
            f"holds {n_names} names; {name} has labels up to {highest} in column "
            f'"{column}", expected {highest + 1} names or more.',
        )


def _parquet_files(place: str, split: str) -> list[Path]:
    path = Path(place)
    if path.is_file():
        return [path]
    files = sorted(path.glob(f"{split}*.parquet"))
    if not files:
        raise InputError(
            "data",
            f"is parquet:{place}; expected a parquet file, or a folder with {split}*.parquet.",
        )
    return files


def _column(table: Any, kind: str, name: str | None) -> str | None:
    found = list(table.column_names)
    if name is not None:
        check_choice(f"{kind}_column", name, found)
        return name
    typed = {"image": "Image", "label": "ClassLabel"}[kind]
    matches = [c for c in found if type(table.features[c]).__name__ == typed]
    matches = matches or [c for c in found if c == kind]
    if kind == "label" and not matches:
        return None  # training and scores need none; zero-shot readings refuse label -1
    if len(matches) != 1:
        raise InputError(
            f"{kind}_column",
            f"is not given and {len(matches)} columns are of type {typed}; "
            f"expected one of {', '.join(found)}.",
        )
    return matches[0]
