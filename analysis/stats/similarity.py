"""How far two versions of a model agree on the same images: predictions, embeddings, geometry."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# sums of a row's products differ in their last bits with its neighbours; such differences are ties
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
    """|A & B| / k, A and B the k classes with the highest logits; k at most the classes there are.

    With k equal to the number of classes it is 1 whatever the logits.
    """
    top_a, top_b = (logits.topk(k, dim=-1).indices for logits in (a, b))
    shared = (top_a[:, :, None] == top_b[:, None, :]).sum((1, 2))
    return shared.to(a.dtype) / k


def linear_cka(a: Float[Tensor, "image d_a"], b: Float[Tensor, "image d_b"]) -> float:
    """||A'B||^2 / (||A'A|| ||B'B||), Frobenius norms, columns centred, rows as they are.

    1 for embeddings equal up to rotation and one scale; NaN where either does not vary over images.
    """
    centred = []
    for x in (a.double(), b.double()):
        spread = x - x.mean(0)
        if float(spread.square().sum()) <= 1e-24 * float(x.square().sum()):
            return float("nan")
        centred.append(spread)
    x, y = centred
    cross, own_x, own_y = (float((u.T @ v).square().sum()) for u, v in ((x, y), (x, x), (y, y)))
    return cross / float(np.sqrt(own_x * own_y))


def similarity_ranks(embeddings: Float[Tensor, "image d_embed"]) -> Float[np.ndarray, " pair"]:
    """Ranks of the cosines of all pairs of images (i < j); ties share their mean rank.

    n (n - 1) / 2 pairs: about 1 GB of working memory and some seconds at 5,000 images.
    """
    from scipy.stats import rankdata  # takes a second to import

    unit = F.normalize(embeddings.double(), dim=-1).cpu().numpy()
    pairs = np.concatenate([unit[i + 1 :] @ unit[i] for i in range(len(unit))])
    return rankdata(pairs.round(_SIMILARITY_DECIMALS))


def pearson(
    x: Float[np.ndarray, "*batch value"], y: Float[np.ndarray, "*batch value"]
) -> Float[np.ndarray, "*batch"]:
    """Correlation along the last axis; NaN where either side is constant or has one value."""
    if x.shape[-1] < 2:
        return np.full(x.shape[:-1], np.nan)
    x_spread, y_spread = (v - v.mean(-1, keepdims=True) for v in (x, y))
    covariance = (x_spread * y_spread).sum(-1)
    scale = np.sqrt((x_spread**2).sum(-1) * (y_spread**2).sum(-1))
    # a mean of equal numbers may round, so that constants are told by their range
    varies = (np.ptp(x, axis=-1) > 0) & (np.ptp(y, axis=-1) > 0)
    return np.divide(covariance, scale, out=np.full(covariance.shape, np.nan), where=varies)
