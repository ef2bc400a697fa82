"""The monosemanticity score of Pach et al. (2025, arXiv 2504.02821), in closed form.

    MS_k = sum_{i<j} a_ik a_jk cos(e_i, e_j) / sum_{i<j} a_ik a_jk

over pairs of images, where a_ik is the image-level activation of unit k, scaled so that its least
value over the images is 0 and its largest 1, and e_i the embedding of image i. With unit vectors
e_i both sums are closed forms, so that no pair is ever formed:

    sum_{i<j} a_i a_j <e_i, e_j> = (||sum_i a_i e_i||^2 - sum_i a_i^2) / 2
    sum_{i<j} a_i a_j            = ((sum_i a_i)^2 - sum_i a_i^2) / 2

A unit whose activations are dealt to random images has the mean cosine of two images as its
expected score, since each pair of activations then meets each pair of images equally often.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def monosemanticity(
    activations: Float[np.ndarray, "image unit"], embeddings: Float[np.ndarray, "image d_embed"]
) -> Float[np.ndarray, " unit"]:
    """The monosemanticity score of every unit; NaN where fewer than two images have weight.

    Args:
        activations: image-level activations.
        embeddings: of the same images, of any length.
    """
    unit = _unit(embeddings)
    a = activations.astype(np.float64)
    low, high = a.min(0), a.max(0)
    a = (a - low) / np.where(high > low, high - low, np.nan)
    squares = (a**2).sum(0)
    similar = ((a.T @ unit) ** 2).sum(1) - squares
    weights = a.sum(0) ** 2 - squares
    # of one image with weight both are 0 but for rounding
    return similar / np.where(weights > 1e-9 * squares, weights, np.nan)


def mean_cosine(embeddings: Float[np.ndarray, "image d_embed"]) -> float:
    """The mean cosine of two different images: what a unit scores that fires on random images."""
    unit = _unit(embeddings)
    n = len(unit)
    return float(((unit.sum(0) ** 2).sum() - n) / (n * (n - 1)))


def _unit(embeddings: np.ndarray) -> Float[np.ndarray, "image d_embed"]:
    e = embeddings.astype(np.float64)
    return e / np.linalg.norm(e, axis=1, keepdims=True)
