"""Writes and reads the CLT files of circuit-tracer, one layer at a time.

    W_enc_{i}.safetensors    W_enc_{i} [F, d], b_enc_{i} [F], b_dec_{i} [d], threshold_{i} [F]
    W_dec_{i}.safetensors    W_dec_{i} [F, L - i, d], slice j writing to layer i + j
    config.yaml              model_kind, feature_input_hook, feature_output_hook; for a CLT that
                             records its teacher also model_name and teacher_weights_sha256, a
                             field of this package

The codes are z = a 1[a > threshold], or ReLU(a) if there is no threshold_0. They are those of
JumpReLU with theta = threshold, or with theta = 0 (log_theta = -inf). Weights are unchanged by
writing and reading. The threshold that is written is theta as the encoder computes it. The
log_theta that is read is the float32 number whose exponential is nearest to the threshold: its
exponential equals a theta that was the exponential of a float32 number, and is within a relative
1e-6 of any other theta from 1e-6 to 1e6.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.inputs import reading
from vit_clt.interchange.files import (
    CONFIG_FILE,
    INPUT_HOOKS,
    KIND,
    OUTPUT_HOOKS,
    TEACHER_KEY,
    check_teacher,
    checked_config,
    checked_shapes,
    circuit_tracer_files,
    count_layers,
)
from vit_clt.interchange.thresholds import nearest_log, with_thresholds
from vit_clt.outputs.staging import remove_unfinished, staged_files
from vit_clt.progress import Progress
from vit_clt.tensor_files import check_finite
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.sparsifiers import SPARSIFIERS, JumpReLU

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
    """Write the files of a CLT in float32. Returns the CLT that the files hold.

    Sparsifiers with thresholds (JumpReLU, BatchTopK) are written exactly. For ReLU-TopK thresholds
    are fitted on `data` (`thresholds.with_thresholds`), which gives another CLT, whose quality must
    be measured again.

    Args:
        clt: the transcoder.
        folder: made if absent; files of the same names are replaced once all new ones are complete.
        vit: the teacher; needed for ReLU-TopK.
        data: images to fit thresholds on; needed for ReLU-TopK.
        progress: show progress bars.

    Raises:
        InputError: Abs-TopK, a per-layer transcoder or a skip connection, which the format cannot
            express; ReLU-TopK without `vit` and `data`; weights that are not finite; or a folder
            that cannot be written, or holds files of further layers.
    """
    target = Path(folder)
    check_exportable(clt.config)
    for name, tensor in clt.named_parameters():
        # log_theta = -inf is ReLU
        if name != "log_theta" and not tensor.isfinite().all():
            raise InputError(f"{name} of the CLT holds NaN or infinite values; expected numbers.")
    n = clt.config.n_layers
    _check_no_further_layers(target, n)
    if clt.thresholds() is None:
        if vit is None or data is None:
            missing = "vit" if vit is None else "data"
            raise InputError(
                missing,
                "is None; ReLU-TopK has no thresholds, expected vit and images to fit them on.",
            )
        clt = with_thresholds(vit, clt, data, progress=progress)
    remove_unfinished(target)
    with staged_files(target, circuit_tracer_files(n)) as staging:
        config = staging / CONFIG_FILE
        config.write_text(yaml.safe_dump(_config_values(clt.config), sort_keys=False))
        for i in Progress(range(n), "export", unit=" layers", disable=not progress):
            for name, tensors in _layer_tensors(clt, i).items():
                save_file(tensors, staging / name)
                # safetensors makes files that only their owner can read
                shutil.copymode(config, staging / name)
    return clt


def check_exportable(config: CLTConfig) -> None:
    """Refuse a CLT that the format cannot express.

    Raises:
        InputError: Abs-TopK, a per-layer transcoder, or a skip connection.
    """
    if config.sparsifier.signed:
        expected = " or ".join(kind.name for kind in SPARSIFIERS.values() if not kind.signed)
        raise InputError(
            "sparsifier",
            f"is {config.sparsifier.name}; its codes may be negative, which a * (a > threshold) "
            f"of circuit-tracer's files never is: expected {expected}.",
        )
    if not config.cross_layer:
        raise InputError(
            "cross_layer",
            "is False; circuit-tracer's CLT files have a decoder for every later "
            "layer, expected a cross-layer transcoder.",
        )
    if config.skip:
        raise InputError(
            "skip",
            "is True; circuit-tracer's CLT files have no place for a skip connection, expected a "
            "CLT without.",
        )


def _check_no_further_layers(folder: Path, n_layers: int) -> None:
    written = circuit_tracer_files(n_layers)
    further = {p.name for kind in ("enc", "dec") for p in folder.glob(f"W_{kind}_*.safetensors")}
    for name in sorted(further - set(written)):
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
    """Tensors of the two files of layer i, copied, as a view is saved with its whole storage."""
    thresholds = clt.thresholds()
    assert thresholds is not None
    encoder = {
        f"W_enc_{i}": clt.W_enc[i],
        f"b_enc_{i}": clt.b_enc[i],
        f"b_dec_{i}": clt.b_dec[i],
        f"threshold_{i}": thresholds[i],
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
    """Read a CLT from circuit-tracer's files of float32, bfloat16 or float16; it is float32.

    The files do not say how the CLT was trained: its sparsifier is JumpReLU with the default
    bandwidth. Its teacher is unknown unless `vit` is given, so that it attaches to any model that
    it fits. Files written by this package name the weights of the teacher, and then a `vit` with
    other weights is refused. The CLT is in memory only once.

    Args:
        folder: holds config.yaml and two files a layer.
        vit: the teacher; it is recorded in the configuration with the hash of its weights.
        progress: show a progress bar.

    Raises:
        InputError: a file or tensor is missing, unreadable, or of another shape or type than the
            rest; the CLT does not read x_l and write y_l, has skip weights or a negative
            threshold; or it does not fit `vit`, or was trained on other weights.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("source", f"is {folder}; expected a folder holding {CONFIG_FILE}.")
    values = checked_config(folder / CONFIG_FILE)
    shapes = checked_shapes(folder)
    n_features, d_model = shapes["W_enc_0"]
    config = CLTConfig(count_layers(folder), d_model, n_features, JumpReLU())
    with torch.device("meta"):
        clt = CrossLayerTranscoder(config)
    if vit is not None:
        check_fits(vit, clt)
        teacher = vit.identity()
        check_teacher(folder / CONFIG_FILE, values, teacher)
        clt.config = replace(config, teacher=teacher)
    biases = torch.empty(clt.b_enc.shape), torch.empty(clt.b_dec.shape)
    log_theta = torch.full_like(biases[0], -torch.inf)
    for i in Progress(range(config.n_layers), "import", unit=" layers", disable=not progress):
        tensors = _read_layer(folder, i, shapes)
        clt.W_enc[i] = nn.Parameter(tensors[f"W_enc_{i}"])
        clt.W_dec[i] = nn.Parameter(tensors[f"W_dec_{i}"].transpose(0, 1).contiguous())
        biases[0][i], biases[1][i] = tensors[f"b_enc_{i}"], tensors[f"b_dec_{i}"]
        if f"threshold_{i}" in tensors:
            log_theta[i] = nearest_log(tensors[f"threshold_{i}"])
    clt.b_enc, clt.b_dec = nn.Parameter(biases[0]), nn.Parameter(biases[1])
    clt.log_theta = nn.Parameter(log_theta)
    return clt


def _read_layer(folder: Path, i: int, known: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Float[Tensor, "..."]] = {}
    for kind, names in (("enc", ("W_enc", "b_enc", "b_dec", "threshold")), ("dec", ("W_dec",))):
        path = folder / f"W_{kind}_{i}.safetensors"
        with reading(path, "a safetensors file"), safe_open(path, framework="pt") as file:
            for name in (f"{name}_{i}" for name in names):
                if name not in known:
                    continue
                tensors[name] = file.get_tensor(name).float()
                check_finite(path, {name: tensors[name]})
    lowest = float(tensors[f"threshold_{i}"].min()) if f"threshold_{i}" in tensors else 0.0
    if lowest < 0:
        raise InputError(
            f"{folder / f'W_enc_{i}.safetensors'}: threshold_{i} is {lowest:.4g} for a feature, "
            "whose codes may then be negative; expected at least 0."
        )
    return tensors
