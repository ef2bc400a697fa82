"""Reads the weights of a TorchScript archive, such as OpenAI's ViT-B-32.pt, and runs none of it.

`torch.jit.load` would make the program in the archive, and a part of it may run. The archive is a
zip file whose data.pkl holds the modules and names a file for each tensor. It is unpickled here
with a list of the few names that such a file needs.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        # what torch.save writes has no constants
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors of an archive by name, and the class names of its modules.

    Masks of attention are left out: a model makes its own.

    Raises:
        Exception: of many kinds, for a file that is not such an archive.
    """
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("/data.pkl")
        with archive.open(pickled) as file:
            reader = _Reader(file, archive, folder)
            root = reader.load()
    tensors = {name: tensor for name, tensor in _tensors(root) if not name.endswith("attn_mask")}
    return tensors, reader.classes


class _Module:
    """Stands for a module of the archive; unpickling fills its `__dict__`."""


def _tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")


class _Reader(pickle.Unpickler):
    """Makes modules without behaviour, tensors, and lists of numbers; nothing else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self.archive, self.folder = archive, folder
        self.classes: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            self.classes.add(name)
            return type(name, (_Module,), {})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): dict,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        entry = self.archive.getinfo(f"{self.folder}/data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED:  # a small file could grow to gigabytes
            raise pickle.UnpicklingError("its tensors are compressed")
        content = bytearray(self.archive.read(entry))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _tensor(flat: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return flat.as_strided(tuple(size), tuple(stride), offset)
