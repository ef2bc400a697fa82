"""Contribution scores once more, in float64 numpy, from public tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vit_clt import AbsTopK, CrossLayerTranscoder
from vit_clt.hooks import HookedViT


def numpy_codes(a: np.ndarray, clt: CrossLayerTranscoder, layer: int) -> np.ndarray:
    """Codes of pre-activations "image token feature", by sorting."""
    if clt.log_theta is not None:
        return a * (a > np.exp(clt.log_theta[layer].double().numpy()))
    signed = isinstance(clt.config.sparsifier, AbsTopK)
    rank = np.argsort(np.argsort(-(np.abs(a) if signed else a), axis=-1), axis=-1)
    return np.where(rank < clt.config.sparsifier.k, a if signed else np.maximum(a, 0), 0)


def numpy_terms(
    vit: HookedViT, clt: CrossLayerTranscoder, images: Tensor
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Per target the terms "source image token d_model"; codes; y "layer image token d_model"."""
    n = vit.cfg.n_layers
    points = [f"blocks.{l}.{p}" for l in range(n) for p in ("ln2.hook_out", "hook_mlp_out")]
    _, cache = vit.run_with_cache(images, names_filter=points)
    x, y = (
        np.stack([cache[f"blocks.{l}.{p}"].double().numpy() for l in range(n)])
        for p in ("ln2.hook_out", "hook_mlp_out")
    )
    W_enc, W_dec = ([w.double().numpy() for w in ws] for ws in (clt.W_enc, clt.W_dec))
    b_enc = clt.b_enc.double().numpy()
    z = np.stack([numpy_codes(x[s] @ W_enc[s].T + b_enc[s], clt, s) for s in range(n)])
    terms = [np.stack([z[s] @ W_dec[s][l - s] for s in range(l + 1)]) for l in range(n)]
    return terms, z, y


def r2(y: np.ndarray, y_hat: np.ndarray) -> float:
    spread = y.reshape(-1, y.shape[-1])
    return 1 - np.square(y - y_hat).sum() / np.square(spread - spread.mean(0)).sum()


def numpy_score(
    c: np.ndarray,
    b: np.ndarray,
    y: np.ndarray,
    kind: str,
    reduce: str,
    images: Sequence[int] | slice = slice(None),
) -> tuple[np.ndarray, float]:
    """Shares of the sources and of the bias, from "source image row d_model".

    `images` are those scored, possibly with repeats; means inside a definition are over all.
    """
    c_mean, y_mean = c.mean(1, keepdims=True), y.reshape(-1, y.shape[-1]).mean(0)
    c, y = c[:, images], y[images]
    y_hat = c.sum(0) + b
    cy, yy, by = (c * y_hat).sum(-1), np.square(y_hat).sum(-1), y_hat @ b
    if kind == "projection":
        if reduce == "mean_of_ratios":
            return (cy / yy).mean((1, 2)), (by / yy).mean()
        return cy.sum((1, 2)) / yy.sum(), by.sum() / yy.sum()
    if kind == "norm":
        norm = np.sqrt(np.square(c).sum(-1))
        if reduce == "mean_of_ratios":
            return (norm / norm.sum(0)).mean((1, 2)), np.nan
        return norm.sum((1, 2)) / norm.sum(), np.nan
    if kind == "centred":
        y_centred = y_hat - (c_mean.sum(0) + b)
        together = ((c - c_mean) * y_centred).sum((1, 2, 3))
        return together / np.square(y_centred).sum(), 0.0
    if kind == "loo":
        return np.square(c).sum((1, 2, 3)) / yy.sum(), yy.size * (b @ b) / yy.sum()
    spread = np.square(y - y_mean).sum()

    def fall(without: np.ndarray) -> float:
        return (np.square(y - without).sum() - np.square(y - y_hat).sum()) / spread

    return np.array([fall(y_hat - c_s) for c_s in c]), fall(y_hat - b)
