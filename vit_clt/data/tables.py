"""Tables of images and labels: Hugging Face data sets, and what every table becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vit_clt.choices import check_choice
from vit_clt.data.decoding import StoredImages, Values
from vit_clt.data.images import DecodedImages
from vit_clt.data.labels import Renumber, class_numbers, resolved_labels
from vit_clt.data.splits import named_split
from vit_clt.data.temporary import TemporaryFolder
from vit_clt.errors import InputError
from vit_clt.inputs import reading

DATA_SET = "a data set of images"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: str
    """"Image", "ClassLabel", or the name of another type."""
    names: list[str] | None
    """The names of the classes, of a ClassLabel."""


def stated_names(names: Any) -> list[str] | None:
    """The class names that a file states; None where they are not a list of texts."""
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


class Table(ABC):
    """Rows of named columns, read when they are asked for."""

    name: str
    folder: Path | None = None
    """The folder in which the paths of images lie."""
    columns: list[Column]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def values(self, column: str) -> list[Any]:
        """Every value of a column."""

    @abstractmethod
    def images(self, column: str, rows: Sequence[int]) -> Values:
        """The values of these rows, which ascend, to be read by their place among the rows."""


class DatasetTable(Table):
    """A split of Hugging Face datasets.

    Args:
        dataset: a `datasets.Dataset`.
        name: name of the data, for messages.
        cache: the folder of the files that `dataset` reads, if they are not kept.
    """

    def __init__(self, dataset: Any, name: str, cache: TemporaryFolder | None = None):
        self.name = name
        self._cache = cache
        # images are decoded here as everywhere; a folder of images holds the paths of its files
        self._dataset = dataset.with_format("arrow")
        if dataset.builder_name == "imagefolder":
            self.folder = Path("/")
        self.columns = []
        for column, feature in dataset.features.items():
            kind = type(feature).__name__
            if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
                kind = "Image"
            self.columns.append(Column(column, kind, stated_names(getattr(feature, "names", None))))

    def __len__(self) -> int:
        return len(self._dataset)

    def values(self, column: str) -> list[Any]:
        """Every value of a column."""
        return self._dataset.select_columns(column)[:][column].to_pylist()

    def images(self, column: str, rows: Sequence[int]) -> Values:
        """The values of these rows."""
        selected = self._dataset.select_columns(column).select(rows)
        return DatasetValues(selected, column, self._cache)


@dataclass(frozen=True)
class DatasetValues:
    """The values of a column of a `datasets.Dataset` in Arrow's format."""

    dataset: Any
    column: str
    cache: TemporaryFolder | None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        return self.dataset[row][self.column][0].as_py()


def hub_table(place: str, split: str | None) -> tuple[Table, str | None]:
    """A data set of Hugging Face datasets, and the name of its split (None if it has no splits).

    Args:
        place: NAME or NAME:CONFIGURATION on the Hub, the folder of a repository with or without
            :CONFIGURATION, or a folder that `save_to_disk` wrote.
        split: name of the split; by default "test".

    Raises:
        InputError: it cannot be read, or has no such split or configuration.
    """
    import datasets

    wanted = split or "test"
    config: str | None = None
    if not Path(place).exists() and ":" in place:
        place, _, config = place.rpartition(":")
    name = f"hf:{place} (split {wanted})"
    path = Path(place)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        with reading(name, DATA_SET, field="data"):
            saved = datasets.load_from_disk(place)
            for dataset in [saved] if isinstance(saved, datasets.Dataset) else saved.values():
                # Arrow does not look at a file before its values are read where the file says
                dataset.data.table.validate(full=True)
        if isinstance(saved, datasets.Dataset):
            return DatasetTable(saved, name), None
        present = named_split(wanted, saved, f"hf:{place}")
        if present is None:
            raise InputError("split", f'is "{wanted}"; hf:{place} has {" and ".join(saved)}.')
        return DatasetTable(saved[present], name), wanted
    options = {} if config is None else {"name": config}
    if not path.is_dir():
        with reading(name, DATA_SET, field="data"):
            return DatasetTable(datasets.load_dataset(place, split=wanted, **options), name), wanted
    if any(character in place for character in "*?[]"):
        raise InputError(
            "data",
            f"is hf:{place}; datasets takes such a path for a pattern, expected a folder without "
            "* ? [ ] in its name.",
        )
    with reading(name, DATA_SET, field="data"):
        configs = datasets.get_dataset_config_names(place)
        if config is None and len(configs) > 1 and "default" not in configs:
            raise InputError(
                "data",
                f"is hf:{place}, which has the configurations {', '.join(configs)}; expected one "
                f"of them, as in hf:{place}:{configs[0]}.",
            )
        cache = TemporaryFolder()
        dataset = datasets.load_dataset(place, split=wanted, cache_dir=str(cache.path), **options)
        return DatasetTable(dataset, name, cache), wanted


def table_images(
    table: Table,
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
        table: the table.
        transform: the model's preprocessing.
        name: name of the data, for messages and results.
        limit: keep the first rows that have a label only.
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
    if not len(table):
        raise InputError("data", f"{name} has no rows; expected at least one.")
    image = _column(table, "image", image_column)
    label = _column(table, "label", label_column)
    assert image is not None
    stored = None
    numbers: list[int | None] = [None] * len(table)
    if label is not None:
        found = class_numbers(table.values(label.name), name, prompted or class_names)
        numbers, stored = found.numbers, label.names or found.names
    labels = resolved_labels(
        numbers,
        stored,
        name,
        limit=limit,
        class_names=class_names,
        prompted=prompted,
        renumber=renumber,
    )
    values = table.images(image.name, labels.rows)
    fetch = StoredImages(values, labels.labels, table.folder)
    data = DecodedImages(fetch, len(labels.rows), transform, labels.class_names, name)
    data.left_out = labels.left_out
    if labels.left_out:
        data.remarks = (f"images without a label left out: {labels.left_out}",)
    return data


def _column(table: Table, kind: str, name: str | None) -> Column | None:
    by_name = {column.name: column for column in table.columns}
    if name is not None:
        check_choice(f"{kind}_column", name, by_name)
        return by_name[name]
    typed = {"image": "Image", "label": "ClassLabel"}[kind]
    matches = [column for column in table.columns if column.kind == typed]
    matches = matches or [column for column in table.columns if column.name == kind]
    if kind == "label" and not matches:
        return None  # training and scores need no labels; a zero-shot reading refuses label -1
    if len(matches) != 1:
        raise InputError(
            f"{kind}_column",
            f"is not given and {len(matches)} columns are of type {typed}; "
            f"expected one of {', '.join(by_name)}.",
        )
    return matches[0]
