"""How far two versions of a model agree on the same images: predictions, embeddings, geometry."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# The last bits of a cosine depend on which rows are multiplied with it: rounding restores ties.
_SIMILARITY_DECIMALS = 12


def kl_divergence(
    teacher: Float[Tensor, "image class"], other: Float[Tensor, "image class"]
) -> Float[Tensor, " image"]:
    """KL(teacher || other) of the two softmax distributions, in nats: sum_c p_c (ln p_c - ln q_c).

    Args:
        teacher: logits that give p.
        other: logits that give q.
    """
    p, q = F.log_softmax(teacher, dim=-1), F.log_softmax(other, dim=-1)
    return (p.exp() * (p - q)).sum(-1)


def top_overlap(
    a: Float[Tensor, "image class"], b: Float[Tensor, "image class"], k: int
) -> Float[Tensor, " image"]:
    """|A & B| / k, where A and B are the k classes with the highest logits of a and of b.

    k is at most the number of classes; where it equals that number, the overlap is always 1.
    """
    top_a, top_b = (logits.topk(k, dim=-1).indices for logits in (a, b))
    shared = (top_a[:, :, None] == top_b[:, None, :]).sum((1, 2))
    return shared.to(a.dtype) / k


def linear_cka(a: Float[Tensor, "image d_a"], b: Float[Tensor, "image d_b"]) -> float:
    """Linear CKA, ||A'B||^2 / (||A'A|| ||B'B||), in Frobenius norms of centred columns.

    It is 1 for embeddings that are equal up to a rotation and one scale, and NaN where either does
    not vary over images. Rows are not normalised.
    """
    centred = []
    for x in (a.double(), b.double()):
        spread = x - x.mean(0)
        if float(spread.square().sum()) <= 1e-24 * float(x.square().sum()):
            return float("nan")
        centred.append(spread)
    x, y = centred
    cross, within_x, within_y = (
        float((u.T @ v).square().sum()) for u, v in ((x, y), (x, x), (y, y))
    )
    return cross / float(np.sqrt(within_x * within_y))


def similarity_ranks(embeddings: Float[Tensor, "image d_embed"]) -> Float[np.ndarray, " pair"]:
    """Ranks of the cosines of all pairs of images (i < j); ties share their mean rank.

    There are n (n - 1) / 2 pairs: 5,000 images take about 1 GB of memory and some seconds.
    """
    from scipy.stats import rankdata  # takes a second to import

    unit = F.normalize(embeddings.double(), dim=-1).cpu().numpy()
    pairs = np.concatenate([unit[i + 1 :] @ unit[i] for i in range(len(unit))])
    return rankdata(pairs.round(_SIMILARITY_DECIMALS))


def pearson(
    x: Float[np.ndarray, "*batch value"], y: Float[np.ndarray, "*batch value"]
) -> Float[np.ndarray, "*batch"]:
    """Pearson correlation along the last axis; NaN where x or y is constant or has one value."""
    if x.shape[-1] < 2:
        return np.full(x.shape[:-1], np.nan)
    x_spread, y_spread = (v - v.mean(-1, keepdims=True) for v in (x, y))
    covariance = (x_spread * y_spread).sum(-1)
    scale = np.sqrt((x_spread**2).sum(-1) * (y_spread**2).sum(-1))
    # The mean of equal numbers may round, so constants are recognised by their range.
    varies = (np.ptp(x, axis=-1) > 0) & (np.ptp(y, axis=-1) > 0)
    return np.divide(covariance, scale, out=np.full(covariance.shape, np.nan), where=varies)
