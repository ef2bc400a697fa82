"""Images read through Hugging Face datasets: from the Hub, parquet files and folders of images."""

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
    """A `datasets.Dataset` of one split, whose encoded images are decoded to PIL images.

    `place` is a file, a folder or a name on the Hub.

    Raises:
        InputError: nothing is there, there is no such split, or it is not of this kind.
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
        # pandas writes encoded images as a struct of bytes and path, without the type
        if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
            table = table.cast_column(column, datasets.Image())
    return table


def local_kind(place: str) -> Kind:
    """Whether a path holds parquet files or a folder of images.

    Raises:
        InputError: nothing is there.
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
    """The rows of a table as an `ImageData`.

    Args:
        table: from `read_table`.
        transform: the model's preprocessing.
        name: name of the data, for messages and results.
        limit: keep the first rows only.
        image_column, label_column: by default the columns typed Image and ClassLabel; without a
            label column labels are -1.
        class_names: names of the classes in label order; by default `prompted`, or the names of the
            label column.
        prompted: the class names of a known data set, in label order.
        renumber: gives the class number of each name of the label column, for data whose names may
            be in another order.

    Raises:
        InputError: there are no rows, no such column, or not one class name for each label.
    """
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    if not len(table):
        raise InputError("data", f"{name} has no rows; expected at least one.")
    image_column = _column(table, "image", image_column)
    label_column = _column(table, "label", label_column)
    stored = None if label_column is None else getattr(table.features[label_column], "names", None)
    numbers = None if renumber is None or stored is None else list(renumber(stored))
    known = prompted if prompted is not None else stored
    if class_names is None:
        class_names = known or []
    elif known is not None:
        check_names(class_names, len(known), name)
    if class_names and label_column is not None:
        _check_labels(table, label_column, numbers, len(class_names), name)

    def fetch(rows: list[int]) -> tuple[list[Any], list[Any]]:
        columns = table[rows]
        labels = columns[label_column] if label_column else [-1] * len(rows)
        if numbers is not None:
            labels = [numbers[l] if isinstance(l, int) and l >= 0 else l for l in labels]
        return columns[image_column], labels

    return DecodedImages(fetch, len(table), transform, class_names, name)


def check_names(names: Sequence[str], n_classes: int, name: str) -> None:
    """Refuse class names that are not one for each class.

    Raises:
        InputError: more or fewer names than classes.
    """
    if len(names) != n_classes:
        raise InputError(
            "class_names",
            f"holds {len(names)} names; {name} has {n_classes} classes, expected as many names.",
        )


def _check_labels(
    table: Any, column: str, numbers: list[int] | None, n_names: int, name: str
) -> None:
    # checked in one pass over the labels, so that an evaluation does not stop at its last batch
    labels = [label for label in table.unique(column) if isinstance(label, int)]
    highest = max([numbers[l] if numbers and l >= 0 else l for l in labels], default=-1)
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
    columns = list(table.column_names)
    if name is not None:
        check_choice(f"{kind}_column", name, columns)
        return name
    typed = {"image": "Image", "label": "ClassLabel"}[kind]
    matches = [c for c in columns if type(table.features[c]).__name__ == typed]
    matches = matches or [c for c in columns if c == kind]
    if kind == "label" and not matches:
        return None  # training and scores need no labels; a zero-shot reading refuses label -1
    if len(matches) != 1:
        raise InputError(
            f"{kind}_column",
            f"is not given and {len(matches)} columns are of type {typed}; "
            f"expected one of {', '.join(columns)}.",
        )
    return matches[0]
