"""CLT files of circuit-tracer, written and read: one layer at a time, by safetensors and YAML.

    W_enc_{i}.safetensors    W_enc_{i} [F, d], b_enc_{i} [F], b_dec_{i} [d], threshold_{i} [F]
    W_dec_{i}.safetensors    W_dec_{i} [F, L - i, d], slice j writing to layer i + j
    config.yaml              model_kind, feature_input_hook, feature_output_hook; model_name and
                             teacher_weights_sha256 (ours) of a CLT that knows its teacher

Its codes are z = a 1[a > threshold], or ReLU(a) where W_enc_0 has no threshold_0: JumpReLU with
theta = threshold, or theta = 0, log_theta = -inf. Weights pass unchanged, both ways. The threshold
written is theta as the encoder computes it; read, log_theta is the float32 number whose exponential
is nearest. For a theta that was exp of a float32 number that is theta itself; for any other from
1e-6 to 1e6 it is within 1e-6 of it, relatively.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from vit_clt.checkpoints import STAGING
from vit_clt.config import CLTConfig, TeacherIdentity
from vit_clt.data import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.interchange_thresholds import nearest_log, with_thresholds
from vit_clt.sparsifiers import AbsTopK, JumpReLU, ReLUTopK
from vit_clt.transcoder import CrossLayerTranscoder

CONFIG_FILE = "config.yaml"
KIND = "cross_layer_transcoder"
TEACHER_KEY = "teacher_weights_sha256"
# names inside a block under which TransformerLens 4 has x_l and y_l; the first of each is written
INPUT_HOOKS = ("ln2.hook_out", "mlp.hook_in")
OUTPUT_HOOKS = ("hook_mlp_out", "mlp.hook_out")
_DTYPES = {"F32", "BF16", "F16"}


def circuit_tracer_files(n_layers: int) -> list[str]:
    """The names of the files of a CLT; config.yaml, without which there is none, comes last."""
    kinds = ("W_enc", "W_dec")
    return [*(f"{kind}_{i}.safetensors" for i in range(n_layers) for kind in kinds), CONFIG_FILE]


# ---- writing ------------------------------------------------------------------------------------


@torch.no_grad()
def export_circuit_tracer(
    clt: CrossLayerTranscoder,
    folder: Path | str,
    *,
    vit: HookedViT | None = None,
    data: ImageData | Tensor | None = None,
    progress: bool = False,
) -> CrossLayerTranscoder:
    """Write a CLT's files in float32; returns the CLT they hold.

    JumpReLU passes exactly. ReLU-TopK has no thresholds: they are fitted on `data`
    (`interchange_thresholds.with_thresholds`), and the result is another CLT, to be measured again.

    Args:
        clt: the transcoder.
        folder: made if absent; files of the same names are replaced, all of them complete before
            the first takes its place.
        vit: the teacher, for ReLU-TopK.
        data: images to fit thresholds on, for ReLU-TopK.
        progress: show progress bars.

    Raises:
        InputError: Abs-TopK or a per-layer transcoder, which the format cannot hold; ReLU-TopK
            without `vit` and `data`; weights that are not finite; or a folder that cannot be
            written, or holds further layers.
    """
    target = Path(folder)
    check_exportable(clt.config)
    for name, tensor in clt.named_parameters():
        # log_theta = -inf is ReLU
        if name != "log_theta" and not tensor.isfinite().all():
            raise InputError(f"{name} of the CLT holds NaN or infinite values; expected numbers.")
    n = clt.config.n_layers
    _check_no_further_layers(target, n)
    if isinstance(clt.config.sparsifier, ReLUTopK):
        if vit is None or data is None:
            missing = "vit" if vit is None else "data"
            raise InputError(
                f"{missing} is None; ReLU-TopK has no thresholds, expected vit and images to fit "
                "them on."
            )
        clt = with_thresholds(vit, clt, data, progress=progress)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in target.glob(f"{STAGING}*"):
            shutil.rmtree(left_by_a_kill)
        with tempfile.TemporaryDirectory(dir=target, prefix=STAGING) as staging:
            config = Path(staging) / CONFIG_FILE
            config.write_text(yaml.safe_dump(_config_values(clt.config), sort_keys=False))
            for i in tqdm(range(n), "export", unit=" layers", disable=not progress):
                for name, tensors in _layer_tensors(clt, i).items():
                    save_file(tensors, Path(staging) / name)
                    # safetensors lets nobody else read its files
                    shutil.copymode(config, Path(staging) / name)
            for name in circuit_tracer_files(n):
                os.replace(Path(staging) / name, target / name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write the CLT to {target}: {error}.") from error
    return clt


def check_exportable(config: CLTConfig) -> None:
    """Refuse what the format cannot hold.

    Raises:
        InputError: Abs-TopK, or a per-layer transcoder.
    """
    if isinstance(config.sparsifier, AbsTopK):
        raise InputError(
            "sparsifier is abs_topk; its codes may be negative, which a * (a > threshold) of "
            "circuit-tracer's files never is: expected jumprelu or relu_topk."
        )
    if not config.cross_layer:
        raise InputError(
            "cross_layer is False; circuit-tracer's CLT files have a decoder for every later "
            "layer, expected a cross-layer transcoder."
        )


def _check_no_further_layers(folder: Path, n_layers: int) -> None:
    own = circuit_tracer_files(n_layers)
    further = {p.name for kind in ("enc", "dec") for p in folder.glob(f"W_{kind}_*.safetensors")}
    for name in sorted(further - set(own)):
        raise InputError(
            f"{folder} holds {name}, which readers would count as a layer; expected a folder "
            f"without, for a CLT of {n_layers} layers."
        )


def _config_values(config: CLTConfig) -> dict[str, Any]:
    known, teacher = config.teacher, {}
    if known is not None:
        teacher = {"model_name": known.model, TEACHER_KEY: known.weights_sha256}
    return {
        "model_kind": KIND,
        **teacher,
        "feature_input_hook": INPUT_HOOKS[0],
        "feature_output_hook": OUTPUT_HOOKS[0],
    }


def _layer_tensors(clt: CrossLayerTranscoder, i: int) -> dict[str, dict[str, Tensor]]:
    """Contents of layer i's two files; copies, as views of a whole would be written whole."""
    assert clt.log_theta is not None
    encoder = {
        f"W_enc_{i}": clt.W_enc[i],
        f"b_enc_{i}": clt.b_enc[i],
        f"b_dec_{i}": clt.b_dec[i],
        f"threshold_{i}": clt.log_theta[i].exp(),
    }
    decoder = {f"W_dec_{i}": clt.W_dec[i].transpose(0, 1)}
    return {
        f"W_{kind}_{i}.safetensors": {
            name: tensor.to("cpu", torch.float32).contiguous().clone()
            for name, tensor in tensors.items()
        }
        for kind, tensors in (("enc", encoder), ("dec", decoder))
    }


# ---- reading ------------------------------------------------------------------------------------


@torch.no_grad()
def import_circuit_tracer(
    folder: Path | str, *, vit: HookedViT | None = None, progress: bool = False
) -> CrossLayerTranscoder:
    """A CLT from such files, float32 whatever they hold (float32, bfloat16 or float16).

    The files do not say how the CLT was trained: its sparsifier is JumpReLU with the default
    bandwidth. Its teacher is unknown, so that it attaches wherever it fits, unless `vit` is given;
    files of ours name the teacher's weights, and another's are refused. Each layer replaces an
    unallocated one: never two copies of the whole.

    Args:
        folder: holds config.yaml and two files a layer.
        vit: the teacher; it is recorded in the configuration, weights' hash included.
        progress: show a progress bar.

    Raises:
        InputError: a file or tensor is missing, unreadable, or of another shape or type than the
            rest; the CLT reads or writes elsewhere than x_l and y_l, has skip weights or a negative
            threshold; or it does not fit `vit`, or names the weights of another.
    """
    source = Path(folder)
    if not source.is_dir():
        raise InputError(f"from is {source}; expected a folder holding {CONFIG_FILE}.")
    values = _checked_config(source / CONFIG_FILE)
    shapes = _checked_shapes(source)
    n_features, d_model = shapes["W_enc_0"]
    config = CLTConfig(_count_layers(source), d_model, n_features, JumpReLU())
    with torch.device("meta"):
        clt = CrossLayerTranscoder(config)
    if vit is not None:
        check_fits(vit, clt)
        teacher = vit.identity()
        _check_teacher(source / CONFIG_FILE, values, teacher)
        clt.config = replace(config, teacher=teacher)
    biases = torch.empty(clt.b_enc.shape), torch.empty(clt.b_dec.shape)
    log_theta = torch.full_like(biases[0], -torch.inf)
    for i in tqdm(range(config.n_layers), "import", unit=" layers", disable=not progress):
        found = _read_layer(source, i, shapes)
        clt.W_enc[i] = nn.Parameter(found[f"W_enc_{i}"])
        clt.W_dec[i] = nn.Parameter(found[f"W_dec_{i}"].transpose(0, 1).contiguous())
        biases[0][i], biases[1][i] = found[f"b_enc_{i}"], found[f"b_dec_{i}"]
        if f"threshold_{i}" in found:
            log_theta[i] = nearest_log(found[f"threshold_{i}"])
    clt.b_enc, clt.b_dec = nn.Parameter(biases[0]), nn.Parameter(biases[1])
    clt.log_theta = nn.Parameter(log_theta)
    return clt


def _checked_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"from is {path.parent}; expected a {path.name} in it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:150].rstrip(".")
        raise InputError(f"{path} is not readable YAML: {reason}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}; expected a mapping.")
    for field, known in (
        ("model_kind", (KIND,)),
        ("feature_input_hook", INPUT_HOOKS),
        ("feature_output_hook", OUTPUT_HOOKS),
    ):
        found = f'"{values[field]}"' if field in values else "missing"
        if values.get(field) not in known:
            expected = " or ".join(f'"{each}"' for each in known)
            raise InputError(f"{field} of {path} is {found}; expected {expected}.")
    return values


def _check_teacher(path: Path, values: Mapping[str, Any], teacher: TeacherIdentity) -> None:
    """Shapes alone do not tell two models of one architecture apart."""
    recorded = values.get(TEACHER_KEY)
    if recorded not in (None, teacher.weights_sha256):
        raise InputError(
            f"{TEACHER_KEY} of {path} is {str(recorded)[:12]} (model_name "
            f'"{values.get("model_name")}"), the weights of model "{teacher.model}" are '
            f"{teacher.weights_sha256[:12]}; expected the model that the CLT was trained on."
        )


def _count_layers(folder: Path) -> int:
    """The largest index of a file of either kind, plus 1: a missing file is no layer less."""
    named = re.compile(r"W_(?:enc|dec)_(0|[1-9]\d{0,3})\.safetensors")
    found = (named.fullmatch(path.name) for path in folder.iterdir())
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _checked_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor to read, from the files' headers alone, checked against each other."""
    n_layers = max(1, _count_layers(folder))
    found: dict[str, tuple[int, ...]] = {}
    files: dict[str, str] = {}
    for name in circuit_tracer_files(n_layers)[:-1]:
        if not (folder / name).is_file():
            raise InputError(f"from is {folder}, with {n_layers} layers; expected a {name} in it.")
        of_file = _header(folder / name)
        found |= of_file
        files |= dict.fromkeys(of_file, name)
    if len(found.get("W_enc_0", ())) != 2:
        have = found.get("W_enc_0", "no such tensor")
        raise InputError(f"W_enc_0.safetensors: W_enc_0 is {have}; expected (n_features, d_model).")
    (f, d), has_thresholds = found["W_enc_0"], "threshold_0" in found
    for i in range(n_layers):
        expected: dict[str, tuple[int, ...] | None] = {
            f"W_enc_{i}": (f, d),
            f"b_enc_{i}": (f,),
            f"b_dec_{i}": (d,),
            f"W_dec_{i}": (f, n_layers - i, d),
            f"threshold_{i}": (f,) if has_thresholds else None,
            f"W_skip_{i}": None,
        }
        for name, want in expected.items():
            if found.get(name) != want:
                file = files.get(name, f"W_{'dec' if 'W_dec' in name else 'enc'}_{i}.safetensors")
                raise InputError(
                    f"{folder / file}: {name} is {found.get(name, 'missing')}; expected "
                    f"{want or 'no such tensor'}, {_reason(name, has_thresholds)}."
                )
    return found


def _reason(name: str, has_thresholds: bool) -> str:
    if name.startswith("W_skip"):
        return "as our CLTs have no skip weights"
    if name.startswith("threshold"):
        return f"as W_enc_0.safetensors has {'one' if has_thresholds else 'none'}"
    return "from the shape of W_enc_0 and the number of layers"


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            dtypes = {name: each.get_dtype() for name, each in slices.items()}
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a complete safetensors file: {error}.") from error
    for name, dtype in dtypes.items():
        if dtype not in _DTYPES:
            raise InputError(f"{path}: {name} is {dtype}; expected F32, BF16 or F16.")
    return shapes


def _read_layer(folder: Path, i: int, known: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Float[Tensor, "..."]] = {}
    for kind, names in (("enc", ("W_enc", "b_enc", "b_dec", "threshold")), ("dec", ("W_dec",))):
        path = folder / f"W_{kind}_{i}.safetensors"
        with safe_open(path, framework="pt") as file:
            for name in (f"{name}_{i}" for name in names):
                if name not in known:
                    continue
                found[name] = file.get_tensor(name).float()
                if not found[name].isfinite().all():
                    raise InputError(
                        f"{path}: {name} holds NaN or infinite values; expected numbers."
                    )
    lowest = float(found[f"threshold_{i}"].min()) if f"threshold_{i}" in found else 0.0
    if lowest < 0:
        raise InputError(
            f"{folder / f'W_enc_{i}.safetensors'}: threshold_{i} is {lowest:.4g} for a feature, "
            "whose codes may then be negative; expected at least 0."
        )
    return found
