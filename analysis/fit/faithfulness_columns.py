"""What surrogate faithfulness averages over images, and the measures such averages make."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from vit_clt.analysis.fit.surrogate_embeddings import SurrogateEmbeddings, Version
from vit_clt.analysis.stats.similarity import kl_divergence, pearson, top_overlap
from vit_clt.zero_shot import ZeroShot

LEADING = 6
"""Columns of `per_image` before its two per prompt template."""
_CHUNK = 1024


def per_image(
    gathered: SurrogateEmbeddings, version: Version, zs: ZeroShot, heads: Sequence[ZeroShot], k: int
) -> Float[np.ndarray, "image column"]:
    """Everything that is averaged over images, in float64.

    Columns: right, loss, flipped, top-k overlap, KL, cosine; then right per head, then KL per head.

    Args:
        gathered: embeddings and labels.
        version: which of them is compared with "original".
        zs: the classifier of the leading columns.
        heads: a classifier per prompt template.
        k: classes that the overlap compares.
    """
    device = zs.weights.device
    original, altered = gathered.versions["original"], gathered.versions[version]
    chunks = []
    for start in range(0, len(gathered), _CHUNK):
        part = slice(start, start + _CHUNK)
        labels = gathered.labels[part].to(device)
        a, b = (x[part].to(device, torch.float64) for x in (original, altered))
        p, q = zs.logits(a), zs.logits(b)
        columns = [
            q.argmax(-1) == labels,
            F.cross_entropy(q, labels, reduction="none"),
            q.argmax(-1) != p.argmax(-1),
            top_overlap(p, q, k),
            kl_divergence(p, q),
            F.cosine_similarity(a, b, dim=-1),
        ]
        assert len(columns) == LEADING
        pairs = [(head.logits(a), head.logits(b)) for head in heads]
        columns += [q.argmax(-1) == labels for _, q in pairs]
        columns += [kl_divergence(p, q) for p, q in pairs]
        chunks.append(torch.stack([column.double() for column in columns], dim=1).cpu())
    return torch.cat(chunks).numpy()


def averages(
    means: Float[np.ndarray, "draw column"], original: Float[np.ndarray, "draw column"], k: int
) -> dict[str, Float[np.ndarray, " draw"]]:
    """Measures by name, from means over images of `per_image`'s columns, one draw or many.

    Args:
        means: of the version.
        original: of the unaltered model, on the same images.
        k: as in `per_image`.
    """
    top1, loss, flip, overlap, kl, cosine = means[:, :LEADING].T
    right, prompt_kl = np.split(means[:, LEADING:], 2, axis=1)
    right_originally, _ = np.split(original[:, LEADING:], 2, axis=1)
    return {
        "top1": top1,
        "delta_top1": top1 - original[:, 0],
        "loss": loss,
        "delta_loss": loss - original[:, 1],
        "flip": flip,
        f"top{k}_overlap": overlap,
        "kl": kl,
        "cosine": cosine,
        "prompt_r": pearson(right_originally, right),
        "prompt_kl": prompt_kl.mean(-1),
    }
