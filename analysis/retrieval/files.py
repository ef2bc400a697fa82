"""An index is kept in a folder as index.safetensors and index.json, moved there when complete.

index.json holds the SHA-256 of the arrays and is moved last, so that an index whose writing was
interrupted between the two, or whose arrays were damaged later, is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from vit_clt.analysis.retrieval.descriptors import Descriptors
from vit_clt.choices import TokenKind
from vit_clt.errors import InputError
from vit_clt.inputs import file_size, read_json, reading
from vit_clt.outputs.manifest import file_hash
from vit_clt.outputs.staging import STAGING, remove_unfinished, staged_files

FORMAT = 1
ARRAYS_FILE = "index.safetensors"
FACTS_FILE = "index.json"
_CSR = ("values", "indices", "offsets")


def write_index(folder: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write both files, over those of an earlier index.

    Raises:
        InputError: the folder holds anything but an index, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("index", f"is {folder}, a file; expected a folder.")
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    # what an interrupted write left may be removed
    known = (ARRAYS_FILE, FACTS_FILE, STAGING)
    if others := [name for name in names if not name.startswith(known)]:
        raise InputError(
            "index",
            f"is {folder}, which holds {min(others)}; expected a new or empty folder, or an index.",
        )
    remove_unfinished(folder)
    with staged_files(folder, [ARRAYS_FILE, FACTS_FILE]) as staging:
        save_file(arrays, staging / ARRAYS_FILE)
        facts = {"format": FORMAT, **facts, "sha256": file_hash(staging / ARRAYS_FILE)}
        (staging / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        # safetensors makes files that only their owner can read
        shutil.copymode(staging / FACTS_FILE, staging / ARRAYS_FILE)


def packed(corpus: Descriptors) -> dict[str, np.ndarray]:
    """Descriptors as flat arrays by name, labels included."""
    arrays = {"labels": corpus.labels}
    for kind, by_layer in corpus.codes.items():
        for s, codes in by_layer.items():
            for part, values in zip(_CSR, (codes.data, codes.indices, codes.indptr), strict=True):
                arrays[f"{kind}.{s}.{part}"] = values
            arrays[f"{kind}.{s}.inputs"] = corpus.inputs[kind][s]
    return arrays


def unpacked(
    arrays: dict[str, np.ndarray],
    tokens: Sequence[TokenKind],
    layers: Sequence[int],
    shape: tuple[int, int],
    d_model: int,
) -> tuple[
    dict[TokenKind, dict[int, csr_array]], dict[TokenKind, dict[int, np.ndarray]], np.ndarray
]:
    """The inverse of `packed`: codes of `shape` and inputs by token kind and layer, and labels.

    Raises:
        InputError: an array is missing, has another shape, or holds NaN or infinite values.
    """
    codes: dict[TokenKind, dict[int, csr_array]] = {kind: {} for kind in tokens}
    inputs: dict[TokenKind, dict[int, np.ndarray]] = {kind: {} for kind in tokens}
    expected = f"codes of {shape[0]} images and {shape[1]} features, as {FACTS_FILE} says"
    with reading(ARRAYS_FILE, expected, problem="does not hold the index"):
        for kind, s in product(tokens, layers):
            parts = tuple(arrays[f"{kind}.{s}.{part}"] for part in _CSR)
            codes[kind][s] = csr_array(parts, shape=shape)
            codes[kind][s].check_format()
            inputs[kind][s] = arrays[f"{kind}.{s}.inputs"]
            for name in ("values", "inputs"):
                _check_numbers(f"{kind}.{s}.{name}", arrays[f"{kind}.{s}.{name}"])
            if inputs[kind][s].shape != (shape[0], d_model):
                raise ValueError(f"{kind}.{s}.inputs has shape {inputs[kind][s].shape}")
        labels = arrays["labels"]
        if labels.shape != shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}")
    return codes, inputs, labels


def _check_numbers(name: str, values: np.ndarray) -> None:
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise ValueError(f"{name} holds other values than finite numbers")


def is_index(folder: Path) -> bool:
    """Whether the folder holds a saved index."""
    return (folder / FACTS_FILE).is_file()


def read_facts(folder: Path) -> dict[str, Any]:
    """The contents of index.json, which are the fields of `IndexFacts`, the L0, and a hash.

    Raises:
        InputError: the file does not exist, cannot be read, or has another format.
    """
    path = folder / FACTS_FILE
    if not is_index(folder):
        raise InputError("index", f"is {folder}; expected a folder holding {FACTS_FILE}.")
    facts = read_json(path)
    if facts.get("format") != FORMAT:
        found = str(facts.get("format"))[:80]
        raise InputError(f"{path} has format {found}; expected {FORMAT}.")
    return facts


def read_arrays(folder: Path, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of index.safetensors, checked against the hash in `facts`.

    Raises:
        InputError: the file is missing, or is not the one that was saved with these facts.
    """
    path = folder / ARRAYS_FILE
    file_size(path)
    with reading(path, "a safetensors file"):
        if file_hash(path) != facts.get("sha256"):
            raise InputError(
                f"{path} is not the file that {FACTS_FILE} was saved with; expected both whole and "
                "of one save."
            )
        return load_file(path)
