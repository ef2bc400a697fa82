"""Data by its form, such as "digits" or "parquet:PATH": Hugging Face data sets and local files.

`load_data` returns an `ImageData` (`vit_clt.data.images`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vit_clt.data.coco import hub_coco, local_coco
from vit_clt.data.decoding import GreyImages, StoredImages
from vit_clt.data.digits import ADDING_CLASSES, DIGITS_CLASSES, adding_arrays, digits_arrays
from vit_clt.data.folders import read_folder
from vit_clt.data.form_names import HELD_OUT, OFFLINE, checked_split, split_form
from vit_clt.data.imagenet100 import IMAGENET100, class_numbers
from vit_clt.data.images import DecodedImages, ImageData
from vit_clt.data.labels import Renumber, check_names, matched, resolved_labels
from vit_clt.data.local_files import is_image_folder, parquet_files
from vit_clt.data.parquet import ParquetTable
from vit_clt.data.prompts import (
    CIFAR10_CLASSES,
    CIFAR10_SYNONYMS,
    CIFAR100_CLASSES,
    CIFAR100_SYNONYMS,
)
from vit_clt.data.tables import hub_table, table_images
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class NamedTable:
    """A data set of the Hub, of which a copy may lie in local files with the same columns."""

    repository: str
    image_column: str
    label_column: str
    class_names: list[str]
    """The class names that prompts use, in label order."""
    renumber: Renumber | None = None


NAMED = {
    "cifar10": NamedTable(
        "uoft-cs/cifar10",
        "img",
        "label",
        CIFAR10_CLASSES,
        renumber=partial(matched, classes=CIFAR10_CLASSES, synonyms=CIFAR10_SYNONYMS),
    ),
    "cifar100": NamedTable(
        "uoft-cs/cifar100",
        "img",
        "fine_label",
        CIFAR100_CLASSES,
        renumber=partial(matched, classes=CIFAR100_CLASSES, synonyms=CIFAR100_SYNONYMS),
    ),
    "imagenet100": NamedTable(
        "clane9/imagenet-100",
        "image",
        "label",
        list(IMAGENET100.values()),
        class_numbers,
    ),
}
OFFLINE_CLASSES = {"digits": DIGITS_CLASSES, "adding": ADDING_CLASSES}
"""Class names of the data sets that come with the package, by form."""


def load_data(
    form: str,
    *,
    vit: HookedViT,
    split: str | None = None,
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageData:
    """Images in the preprocessing of `vit`.

    Args:
        form: "digits" or "adding" (offline; "adding" has `factors`, its two digits); "cifar10",
            "cifar100", "imagenet100" or "coco" from the Hub; the same from local files,
            "cifar10:PATH", "cifar100:PATH", "imagenet100:PATH" (each what parquet: or imagefolder:
            reads) and "coco:PATH" (official layout); "parquet:PATH" (a file, or a folder of
            SPLIT*.parquet), "imagefolder:PATH", or "hf:NAME" (a data set of the Hub, the folder of
            one, or what `save_to_disk` wrote; "hf:NAME:CONFIGURATION" where it has several). "~" in
            a PATH is the home folder; no other character is special.
        vit: the model whose preprocessing is applied.
        split: name of the split; by default the held-out one: "test", for imagenet100 "validation",
            for coco "val". "val" and "validation" mean the same. A single parquet file is its own
            split, and so is a folder whose folders are classes.
        limit: keep the first rows only; where some rows have no label, the first that have one.
        image_column: by default the column typed Image.
        label_column: by default the column typed ClassLabel. Without a label column labels are -1,
            which is enough for training and scores.
        class_names: names of the classes in label order; by default those of the data set.

    Rows whose label is not known (-1, null) are left out if others have a label; `left_out` counts
    them, and `remarks` says this and which files were not read.

    Raises:
        InputError: an unknown form, split or column, nothing is there, there are no rows, or not
            one class name for each label.
    """
    if vit.preprocess is None:
        raise InputError("vit", "has no preprocessing; expected one from HookedViT.from_open_clip.")
    if limit is not None and limit < 1:
        raise InputError("limit", f"is {limit}; expected at least 1.")
    kind, place = split_form(form)
    if kind in OFFLINE:
        return _offline(kind, vit.preprocess, split or "test", limit, class_names)
    columns = {"image": image_column, "label": label_column}
    if kind == "coco":
        return _coco(place, vit.preprocess, split, limit, columns, class_names)
    named = NAMED.get(kind)
    own_split = kind != "hf" and Path(place).is_file()
    if named is not None and not own_split:
        held_out = HELD_OUT[kind]
        split = checked_split(kind, split or held_out, ("train", held_out))
    if kind == "imagefolder" or (named and place and is_image_folder(place)):
        _check_no_columns(columns)
        return _image_folder(form, place, vit.preprocess, split, limit, class_names, named)
    if kind == "hf" or not place:
        table, split = hub_table(named.repository if named else place, split)
    else:
        own = split or "test"
        split = None if own_split else own
        table = ParquetTable(parquet_files(place, own), f"parquet:{place} (split {own})")
    if named is not None:
        present = {column.name for column in table.columns}
        for role, default in (("image", named.image_column), ("label", named.label_column)):
            # the columns of a copy may have other names and are found by their types
            if columns[role] is None and default in present:
                columns[role] = default
        if label_column not in (None, named.label_column):
            named = None  # other labels of the same images, which have their own names
    data = table_images(
        table,
        vit.preprocess,
        form if split is None else f"{form} ({split})",
        limit=limit,
        image_column=columns["image"],
        label_column=columns["label"],
        class_names=class_names,
        prompted=named.class_names if named else None,
        renumber=named.renumber if named else None,
    )
    data.split = split
    return data


def check_prepared(vit: HookedViT, data: ImageData) -> None:
    """Refuse images with the preprocessing of another model, whose numbers would be wrong.

    Two preprocessings are the same if their `repr` is, which in torchvision lists all settings.
    Tensors, a model without a preprocessing, and functions, whose `repr` is an address, cannot be
    compared and are accepted.

    Raises:
        InputError: the preprocessing of `data` is not that of `vit`.
    """
    if data.transform is None or vit.preprocess is None:
        return
    transforms = data.transform, vit.preprocess
    text, expected = (" ".join(repr(transform).split()) for transform in transforms)
    if " at 0x" in text + expected or text == expected:
        return
    raise InputError(
        "data",
        f"{data.name} went through {text}; expected the preprocessing of model "
        f"{vit.cfg.model}, {expected}: load it with vit=.",
    )


def _image_folder(
    form: str,
    place: str,
    transform: Transform,
    split: str | None,
    limit: int | None,
    class_names: Sequence[str] | None,
    named: NamedTable | None,
) -> ImageData:
    folder = read_folder(place, split)
    if not folder.own_split:
        split = split or "test"
    name = form if split is None else f"{form} ({split})"
    labels = resolved_labels(
        folder.labels,
        folder.class_names or None,
        name,
        limit=limit,
        class_names=class_names,
        prompted=named.class_names if named else None,
        renumber=named.renumber if named else None,
    )
    files = [folder.files[row] for row in labels.rows]
    fetch = StoredImages(files, labels.labels)
    data = DecodedImages(fetch, len(files), transform, labels.class_names, name)
    data.split, data.left_out, data.remarks = split, labels.left_out, list(folder.remarks)
    if labels.left_out:
        data.remarks.append(f"images in no class folder left out: {labels.left_out}")
    return data


def _check_no_columns(columns: dict[str, str | None]) -> None:
    for role, column in columns.items():
        if column not in (None, role):
            raise InputError(
                f"{role}_column",
                f'is "{column}"; a folder of images has no such column, expected none.',
            )


def _coco(
    place: str,
    transform: Transform,
    split: str | None,
    limit: int | None,
    columns: dict[str, str | None],
    class_names: Sequence[str] | None,
) -> ImageData:
    split = split or "val"
    for role, column in columns.items():
        if column is not None:
            raise InputError(f"{role}_column", f'is "{column}"; coco has its own, expected none.')
    if place:
        data = local_coco(place, split, transform, limit)
    else:
        split = checked_split("coco", split, ("train", HELD_OUT["coco"]))
        data = hub_coco(split, transform, limit)
    if class_names is not None:
        check_names(class_names, data.class_names, "coco")
        data.class_names = list(class_names)
    data.split = split
    return data


def _offline(
    kind: str,
    transform: Transform,
    split: str,
    limit: int | None,
    class_names: Sequence[str] | None,
) -> ImageData:
    split = checked_split(kind, split, ("train", "test"))
    if class_names is not None:
        check_names(class_names, OFFLINE_CLASSES[kind], kind)
    arrays = adding_arrays(split) if kind == "adding" else digits_arrays(split)
    pixels, labels, *factors = (values[:limit] for values in arrays)
    fetch = StoredImages(GreyImages(pixels), labels.tolist())
    names = class_names or OFFLINE_CLASSES[kind]
    data = DecodedImages(fetch, len(labels), transform, names, f"{kind} ({split})")
    data.split = split
    if factors:
        left, right = map(torch.from_numpy, factors)
        data.factors = {"left": left, "right": right}
    return data
