"""Peers' trained weights as a CLT of ours, in float64.

Both peers compute y^_l = b_l + sum over s <= l of z_s D_{s->l} from z_s = gate(W_s x_s + b_s), in
normalised units. What differs from our formula is folded into the weights:

    lm-saes      x and y are multiplied by a factor a layer; features may be gated by their
                 pre-activation times their decoder norm n, which is z = gate(n a) / n
    decode-clt   x and y are standardised entry by entry; every pair has a bias

The gate is top-k of the positive entries, or a > theta (JumpReLU) where a peer's own function has
turned codes that are chosen among all layers or all rows into thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from quality_task import CHECKED_FILE, WEIGHTS_FILE
from safetensors.torch import load_file
from torch import Tensor

from vit_clt import CLTConfig, CrossLayerTranscoder, JumpReLU, ReLUTopK

TOLERANCE = 1e-4
"""Largest difference of y^ to the peer's own, as a share of its largest entry."""


def from_lm_saes(weights: Mapping[str, Tensor], k: int) -> CrossLayerTranscoder:
    """lm-saes' `CrossLayerTranscoder`, top-k without decoder norms or JumpReLU.

    Args:
        weights: its parameters by name, W_E "layer d_model feature", b_E, W_D.{l} "source feature
            d_model", b_D.{l}, and for JumpReLU the logarithms of thresholds; scale_x and scale_y
            " layer", the factors of its normalisation.
        k: active features a row and layer, for top-k.
    """
    n, _, _ = weights["W_E"].shape
    scale_x, scale_y = weights["scale_x"], weights["scale_y"]
    log_theta = weights.get("activation_function.log_jumprelu_threshold")
    clt = _empty(*weights["W_E"].shape, k, log_theta)
    with torch.no_grad():
        clt.b_enc.copy_(weights["b_E"])
        for s in range(n):
            clt.W_enc[s].copy_(weights["W_E"][s].T * scale_x[s])
            for l in range(s, n):
                clt.W_dec[s][l - s].copy_(weights[f"W_D.{l}"][s] / scale_y[l])
            clt.b_dec[s].copy_(weights[f"b_D.{s}"] / scale_y[s])
    return clt


def from_decode_clt(weights: Mapping[str, Tensor], k: int) -> CrossLayerTranscoder:
    """decode-clt's `CrossLayerTranscoder` once its codes have thresholds (JumpReLU).

    Args:
        weights: its parameters by name, and mean_in, std_in, mean_tg, std_tg "layer d_model" of its
            standardisation.
        k: not used; its codes have thresholds.
    """
    log_theta = weights["theta_manager.log_threshold"]
    n, features = log_theta.shape
    d = weights["mean_in"].shape[1]
    clt = _empty(n, d, features, k, log_theta)
    with torch.no_grad():
        clt.b_dec.copy_(weights["mean_tg"])
        for s in range(n):
            encoder = f"encoder_module.encoders.{s}"
            W_enc = weights[f"{encoder}.weight"] / weights["std_in"][s]
            clt.W_enc[s].copy_(W_enc)
            clt.b_enc[s].copy_(weights[f"{encoder}.bias_param"] - W_enc @ weights["mean_in"][s])
            for l in range(s, n):
                decoder, std = f"decoder_module.decoders.{s}->{l}", weights["std_tg"][l]
                clt.W_dec[s][l - s].copy_(weights[f"{decoder}.weight"].T * std)
                clt.b_dec[l].add_(weights[f"{decoder}.bias_param"] * std)
    return clt


CONVERSIONS: dict[str, Callable[[Mapping[str, Tensor], int], CrossLayerTranscoder]] = {
    "lm-saes": from_lm_saes,
    "decode-clt": from_decode_clt,
}
"""By package."""


def converted(folder: Path, package: str, k: int) -> tuple[CrossLayerTranscoder, float]:
    """The CLT of a peer's recorded weights, in float32, and `difference` before rounding.

    Raises:
        ValueError: its outputs are not the peer's.
    """
    clt = CONVERSIONS[package](load_file(folder / WEIGHTS_FILE), k)
    checked = load_file(folder / CHECKED_FILE)
    found = difference(clt, checked["x"], checked["y_hat"])
    if not found <= TOLERANCE:
        raise ValueError(f"{package}: y^ of the converted CLT differs by {found:.1e}")
    return clt.float().eval().requires_grad_(False), found


@torch.no_grad()
def difference(
    clt: CrossLayerTranscoder,
    x: Float[Tensor, "layer row d_model"],
    y_hat: Float[Tensor, "layer row d_model"],
) -> float:
    """Largest difference of the CLT's outputs to `y_hat`, as a share of its largest entry."""
    return float((clt(x) - y_hat).abs().max() / y_hat.abs().max())


def _empty(n: int, d: int, features: int, k: int, log_theta: Tensor | None) -> CrossLayerTranscoder:
    sparsifier = ReLUTopK(k) if log_theta is None else JumpReLU()
    clt = CrossLayerTranscoder(CLTConfig(n, d, features, sparsifier), backend="dense").double()
    if log_theta is not None:
        assert clt.log_theta is not None
        clt.log_theta.data.copy_(log_theta)
    return clt
