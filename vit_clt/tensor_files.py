"""Safetensors files of others: what their headers say, and tensors that are finite numbers.

A header names tensors, types and shapes; safetensors itself checks that they fill the file exactly.
It is read first, so that what a configuration asks for can be held against what there is before any
memory is taken. This module does not import torch before tensors are checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import safe_open

from vit_clt.errors import InputError
from vit_clt.inputs import file_size, reading

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F32", "BF16", "F16", "F64")
"""Types of numbers that weights may have, as headers spell them."""
MAX_TENSORS = 20_000


class TensorFacts(NamedTuple):
    """What a header says about one tensor."""

    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """The header of a safetensors file."""

    tensors: dict[str, TensorFacts]
    """By name."""
    metadata: dict[str, str]
    """Entries that are no tensors."""


def read_header(path: Path | str) -> Header:
    """The header of a safetensors file.

    Raises:
        InputError: there is no regular file, it is no complete safetensors file, or it has more
            than `MAX_TENSORS` tensors.
    """
    file_size(path)
    expected, problem = "all of one", "is not a complete safetensors file"
    with reading(path, expected, problem=problem), safe_open(path, "np") as file:
        names = list(file.keys())
        if len(names) > MAX_TENSORS:
            raise ValueError(f"it has {len(names):,} tensors, and at most {MAX_TENSORS:,} are read")
        slices = {name: file.get_slice(name) for name in names}
        tensors = {
            name: TensorFacts(part.get_dtype(), tuple(part.get_shape()))
            for name, part in slices.items()
        }
        return Header(tensors, file.metadata() or {})


def check_floats(
    path: Path | str, tensors: Mapping[str, TensorFacts], types: Iterable[str] = FLOATS
) -> None:
    """Refuse weights that are no floating-point numbers.

    Raises:
        InputError: a tensor has another type than `types`.
    """
    known = list(types)
    for name, (dtype, _) in sorted(tensors.items()):
        if dtype not in known:
            raise InputError(
                f"{path}: {name} is {dtype}; expected {', '.join(known[:-1])} or {known[-1]}."
            )


def check_finite(
    subject: Path | str, tensors: Mapping[str, Tensor], unbounded_below: Iterable[str] = ()
) -> None:
    """Refuse weights that hold NaN or infinite values.

    Args:
        subject: the path of the file, or other words for what holds the tensors.
        tensors: by name; those of integers pass.
        unbounded_below: names of tensors that may hold -infinity.

    Raises:
        InputError: the sentence has the name of the tensor.
    """
    may_be_low = set(unbounded_below)
    for name, tensor in tensors.items():
        # a sum is finite only if all its terms are, and takes a fraction of the time
        if not tensor.is_floating_point() or tensor.sum().isfinite():
            continue
        numbers = tensor.isfinite()
        if name in may_be_low:
            numbers = numbers | (tensor == float("-inf"))
        if not numbers.all():
            raise InputError(
                f"{subject}: {name} holds NaN or infinite values; expected finite numbers."
            )
