"""What is checked in the files of a transformers model before anything is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from vit_clt.errors import InputError
from vit_clt.inputs import read_json
from vit_clt.tensor_files import check_floats, read_header

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
_INDEX_FILE = "model.safetensors.index.json"
# the smallest and the largest value of each
_SIZES = {
    "num_hidden_layers": (1, 256),
    "hidden_size": (1, 65_536),
    "intermediate_size": (1, 1_000_000),
    "num_attention_heads": (1, 4096),
    "mlp_ratio": (1, 64),
    "image_size": (1, 4096),
    "patch_size": (1, 4096),
    "num_register_tokens": (0, 4096),
    "num_labels": (0, 1_000_000),
    "projection_dim": (1, 65_536),
    "height": (1, 4096),
    "width": (1, 4096),
    "shortest_edge": (1, 4096),
}


def find_file(place: str, name: str) -> Path | None:
    """The path of a file in a folder or a repository of the Hub; None if there is no such file."""
    path = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def check_settings(path: Path) -> None:
    """Check the sizes in a config.json or preprocessor_config.json, at every depth.

    Raises:
        InputError: the file is unreadable, names a quantization, or a size is out of range.
    """
    _check_sizes(path, read_json(path))


def _check_sizes(path: Path, values: Mapping[str, Any]) -> None:
    if "quantization_config" in values:
        raise InputError(f"{path} names a quantization; expected weights of floating-point type.")
    for name, value in values.items():
        if isinstance(value, dict):
            _check_sizes(path, value)
        if name not in _SIZES or isinstance(value, dict) or value is None:
            continue
        least, most = _SIZES[name]
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(n, int | float) and least <= n <= most for n in numbers):
            raise InputError(
                f"{path}: {name} is {str(value)[:50]}; expected from {least} to {most}."
            )


def check_weights(place: str, n_numbers: int) -> None:
    """Check the headers of all weights of a model, whole or in shards.

    Args:
        place: a folder, or the name of a repository of the Hub.
        n_numbers: how many numbers the model has, of those that its weights must hold.

    Raises:
        InputError: there are no safetensors, a shard is missing or lies elsewhere, a tensor is of
            no floating-point type, or the weights have fewer numbers than the model.
    """
    there = 0
    for path in _weight_files(place):
        tensors = read_header(path).tensors
        # indices that are kept beside weights
        floats = {name: t for name, t in tensors.items() if not name.endswith("position_ids")}
        check_floats(path, floats)
        there += sum(prod(tensor.shape) for tensor in floats.values())
    if n_numbers > there:
        raise InputError(
            f"{CONFIG_FILE} of {place} asks for a model of {n_numbers:,} numbers; expected at most "
            f"{there:,}, as the weights have."
        )


def _weight_files(place: str) -> list[Path]:
    whole = find_file(place, WEIGHTS_FILE)
    if whole is not None:
        return [whole]
    index = find_file(place, _INDEX_FILE)
    if index is None:
        raise InputError(
            "model",
            f"is {place}, which has no {WEIGHTS_FILE}; expected safetensors, whole or in shards.",
        )
    names = sorted(set(read_json(index)["weight_map"].values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise InputError(
            f"{index} names the shard {str(outside[0])[:80]}; expected files beside it."
        )
    found = {name: find_file(place, name) for name in names}
    for name, path in found.items():
        if path is None:
            raise InputError(f"{index} names the shard {name[:80]}, which is missing.")
    return [path for path in found.values() if path is not None]
