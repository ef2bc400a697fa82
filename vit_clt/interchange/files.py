"""Names and contents of circuit-tracer's files, which are checked before a layer is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_clt.errors import InputError
from vit_clt.interchange.plain_yaml import read_yaml
from vit_clt.tensor_files import check_floats, read_header
from vit_clt.transcoder.config import TeacherIdentity

CONFIG_FILE = "config.yaml"
KIND = "cross_layer_transcoder"
TEACHER_KEY = "teacher_weights_sha256"
# names inside a block under which TransformerLens 4 has x_l and y_l; the first of each is written
INPUT_HOOKS = ("ln2.hook_out", "mlp.hook_in")
OUTPUT_HOOKS = ("hook_mlp_out", "mlp.hook_out")
_TYPES = ("F32", "BF16", "F16")


def circuit_tracer_files(n_layers: int) -> list[str]:
    """The names of the files of a CLT. config.yaml comes last, as a folder without it is no CLT."""
    kinds = ("W_enc", "W_dec")
    return [*(f"{kind}_{i}.safetensors" for i in range(n_layers) for kind in kinds), CONFIG_FILE]


def checked_config(path: Path) -> dict[str, Any]:
    """The values of a config.yaml.

    Raises:
        InputError: the file is missing or unreadable, or for another kind of model or other hooks.
    """
    if not path.is_file():
        raise InputError("source", f"is {path.parent}; expected a {path.name} in it.")
    values = read_yaml(path)
    for field, known in (
        ("model_kind", (KIND,)),
        ("feature_input_hook", INPUT_HOOKS),
        ("feature_output_hook", OUTPUT_HOOKS),
    ):
        value = f'"{str(values[field])[:80]}"' if field in values else "missing"
        if values.get(field) not in known:
            expected = " or ".join(f'"{choice}"' for choice in known)
            raise InputError(f"{field} of {path} is {value}; expected {expected}.")
    return values


def check_teacher(path: Path, values: Mapping[str, Any], teacher: TeacherIdentity) -> None:
    """Refuse the files of a CLT that was trained on other weights than those of `teacher`.

    Shapes alone do not tell two models of one architecture apart.

    Raises:
        InputError: config.yaml names other weights.
    """
    recorded = values.get(TEACHER_KEY)
    if recorded not in (None, teacher.weights_sha256):
        raise InputError(
            f"{TEACHER_KEY} of {path} is {str(recorded)[:12]} (model_name "
            f'"{str(values.get("model_name"))[:80]}"), the weights of model "{teacher.model}" are '
            f"{teacher.weights_sha256[:12]}; expected the model that the CLT was trained on."
        )


def count_layers(folder: Path) -> int:
    """The number of layers: the largest index of a file plus 1, even if other files are missing."""
    named = re.compile(r"W_(?:enc|dec)_(0|[1-9]\d{0,3})\.safetensors")
    matches = (named.fullmatch(path.name) for path in folder.iterdir())
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def checked_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors by name, read from the headers and checked against each other.

    Raises:
        InputError: a file or tensor is missing, unreadable, or of another shape or type than the
            rest, or the CLT has skip weights.
    """
    n_layers = max(1, count_layers(folder))
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, str] = {}
    for name in circuit_tracer_files(n_layers)[:-1]:
        if not (folder / name).is_file():
            raise InputError(
                "source", f"is {folder}, with {n_layers} layers; expected a {name} in it."
            )
        header = _header(folder / name)
        shapes |= header
        files |= dict.fromkeys(header, name)
    if len(shapes.get("W_enc_0", ())) != 2:
        shape = shapes.get("W_enc_0", "no such tensor")
        raise InputError(
            f"W_enc_0.safetensors: W_enc_0 is {shape}; expected (n_features, d_model)."
        )
    (f, d), has_thresholds = shapes["W_enc_0"], "threshold_0" in shapes
    for i in range(n_layers):
        expected: dict[str, tuple[int, ...] | None] = {
            f"W_enc_{i}": (f, d),
            f"b_enc_{i}": (f,),
            f"b_dec_{i}": (d,),
            f"W_dec_{i}": (f, n_layers - i, d),
            f"threshold_{i}": (f,) if has_thresholds else None,
            f"W_skip_{i}": None,
        }
        for name, expected_shape in expected.items():
            if shapes.get(name) != expected_shape:
                file = files.get(name, f"W_{'dec' if 'W_dec' in name else 'enc'}_{i}.safetensors")
                raise InputError(
                    f"{folder / file}: {name} is {shapes.get(name, 'missing')}; expected "
                    f"{expected_shape or 'no such tensor'}, {_reason(name, has_thresholds)}."
                )
    return shapes


def _reason(name: str, has_thresholds: bool) -> str:
    if name.startswith("W_skip"):
        return "as skip weights are not read"
    if name.startswith("threshold"):
        return f"as W_enc_0.safetensors has {'one' if has_thresholds else 'none'}"
    return "from the shape of W_enc_0 and the number of layers"


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    tensors = read_header(path).tensors
    check_floats(path, tensors, _TYPES)
    return {name: tensor.shape for name, tensor in tensors.items()}
