"""Reads the weights of a ViT from the files that people have, whatever wraps them.

Weights may be inside dicts (`{"state_dict": ...}`, `{"model_ema": ...}`), and their names may begin
with those of wrappers (`module.` of DDP, `_orig_mod.` of torch.compile, `model.` of Lightning).
Both are treated as a prefix of the names, and the prefix is taken off under which most names are
those of the model. A model is filled completely, so that no random weights remain in it.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vit_clt.errors import InputError
from vit_clt.hooks.towers.torchscript import is_torchscript, read_torchscript
from vit_clt.inputs import file_size, read_json, reading
from vit_clt.tensor_files import check_finite

_WRAPPERS = ("_orig_mod", "module")
_DEPTH = 5
_EXPECTED = "tensors alone, as of torch.save(model.state_dict(), ...)"


class Weights(NamedTuple):
    """Tensors that begin with one prefix, without it."""

    tensors: dict[str, Tensor]
    """By name."""
    prefix: str
    """What was taken off the names."""


class WeightsFile(NamedTuple):
    """What a file of weights holds."""

    path: Path
    tensors: dict[str, Tensor]
    """By name, with the names of the dicts that they are in before it: "state_dict.visual.proj"."""
    classes: frozenset[str] = frozenset()
    """Class names of the modules in a TorchScript archive; other files name none."""

    def named_as(self, names: Collection[str]) -> Weights:
        """The tensors under the prefix with which most of their names are among `names`.

        Averaged weights (EMA) come before others where a file holds both.

        Raises:
            InputError: several models fit equally well, and not just one of them is averaged.
        """
        plain = {name: _without_wrappers(name) for name in self.tensors}
        counts: Counter[str] = Counter()
        for name in plain.values():
            for start in _starts(name):
                if name[start:] in names:
                    counts[name[:start]] += 1
        most = max(counts.values(), default=0)
        best = [prefix for prefix, count in counts.items() if count == most] or [""]
        averaged = [prefix for prefix in best if "ema" in prefix.lower()]
        if len(best) > 1 and len(averaged) != 1:
            raise InputError(
                f"{self.path} holds several models, under {', '.join(sorted(best))[:200]}; "
                "expected one."
            )
        prefix = averaged[0] if averaged else best[0]
        tensors = {
            name.removeprefix(prefix): self.tensors[full]
            for full, name in plain.items()
            if name.startswith(prefix)
        }
        # one name as it is in the file, wrappers included
        for full, name in plain.items():
            inner = name.removeprefix(prefix)
            if name.startswith(prefix) and inner in names:
                return Weights(tensors, full.removesuffix(inner))
        return Weights(tensors, prefix)


def read_weights(place: str | Path) -> WeightsFile:
    """The tensors of a weights file, or of a folder of safetensors files; no code of it is run.

    Args:
        place: a safetensors file; a file of `torch.save`, which is read with `weights_only=True`; a
            TorchScript archive; or a folder with one safetensors file, or with several and their
            index, as Hugging Face writes them.

    Raises:
        InputError: it is missing, damaged, or holds other things than tensors.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return WeightsFile(path, _read_folder(path))
    file_size(path)
    with reading(path, _EXPECTED):
        if path.suffix == ".safetensors":
            return WeightsFile(path, load_file(path))
        if is_torchscript(path):
            tensors, classes = read_torchscript(path)
            return WeightsFile(path, tensors, frozenset(classes))
        return WeightsFile(path, dict(_flat(_unpickled(path))))


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    subject: Path | str,
    may_be_left_out: Callable[[str], bool],
) -> list[str]:
    """Copy tensors into a model, all of it.

    Args:
        model: the model.
        tensors: by the names of its state dict.
        subject: the path of the file, for errors.
        may_be_left_out: whether a tensor of this name, which the model has not, does no harm.

    Returns:
        The names of the tensors that were left out.

    Raises:
        InputError: a tensor is missing, not known to the model, of another shape, no floating-point
            number, or not finite.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    left_out = sorted(name for name in tensors if name not in expected)
    unknown = [name for name in left_out if not may_be_left_out(name)]
    if missing or unknown:
        raise InputError(
            f"{subject} lacks {len(missing)} of the {len(expected)} tensors of the model"
            f"{_some(missing)} and has {len(unknown)} unknown ones{_some(unknown)}; expected the "
            "weights of this model, under its own names."
        )
    for name, value in expected.items():
        found = tensors[name]
        if found.shape != value.shape:
            raise InputError(
                f"{subject}: {name} has shape {tuple(found.shape)}; expected {tuple(value.shape)}."
            )
        if value.is_floating_point() and not found.is_floating_point():
            raise InputError(
                f"{subject}: {name} is {found.dtype}; expected floating-point numbers."
            )
    used = {name: tensors[name] for name in expected}
    check_finite(subject, used)
    model.load_state_dict(used)
    return left_out


def told(weights: Weights, left_out: Collection[str]) -> list[str]:
    """What was taken off and left out, as parts of a sentence; none where it is nothing unusual."""
    parts = []
    if weights.prefix not in ("", "state_dict."):
        parts.append(f'"{weights.prefix}" is taken off the names of its tensors')
    if left_out:
        parts.append(
            f"tensors of no such name in the model are left out: {len(left_out)}{_some(left_out)}"
        )
    return parts


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:3])[:150]
    return f" ({shown}{', ...' if len(names) > 3 else ''})" if names else ""


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _starts(name: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _read_folder(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        with reading(index, "the index of safetensors files beside it"):
            files = sorted(set(read_json(index)["weight_map"].values()))
            if any(Path(name).name != name for name in files):
                raise ValueError("it names files in other folders")
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        if len(files) != 1:
            raise InputError(
                f"{folder} holds {len(files)} safetensors files; expected one, or {index.name}."
            )
    tensors: dict[str, Tensor] = {}
    for name in files:
        file_size(folder / name)
        with reading(folder / name, "all of a safetensors file"):
            tensors |= load_file(folder / name)
    return tensors


def _unpickled(path: Path) -> Any:
    # options of a training script are often saved beside weights, and do nothing
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = re.search(r"GLOBAL (\S+)", str(error))
            if name is None:
                raise ValueError("it is damaged, or was not written by torch.save") from error
            raise ValueError(f"it holds a Python object, {name[1]}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds a {type(found).__name__}")
    return found


def _flat(values: Mapping[Any, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """The tensors of nested dicts; whatever else is in them is passed by."""
    for name, value in values.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Mapping) and depth < _DEPTH:
            yield from _flat(value, f"{prefix}{name}.", depth + 1)
