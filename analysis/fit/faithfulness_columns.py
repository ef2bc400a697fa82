"""The measures of surrogate faithfulness, and what is averaged over images to make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from vit_clt.analysis.fit.surrogate_embeddings import SurrogateEmbeddings, Version
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.similarity import kl_divergence, pearson, top_overlap
from vit_clt.zero_shot import ZeroShot

LEADING = 6
"""Columns of `per_image` before its two per prompt template."""
_CHUNK = 1024


@dataclass(frozen=True)
class Quantity:
    """What a number of the study is called; docs/definitions.md defines it."""

    name: str
    title: str
    unit: Literal["fraction", "nats"]
    percent: bool = False
    """Whether tables and figures show it times 100."""

    @property
    def label(self) -> str:
        """Title with the unit that tables and figures show."""
        if self.percent:
            return f"{self.title} (%)"
        return f"{self.title} (nats)" if self.unit == "nats" else self.title

    def text(self, value: Interval) -> str:
        """As tables show it, with its interval where it has one; "undefined" for NaN."""
        if isnan(value):
            return "undefined"
        return value.text(".2f", 100) if self.percent else value.text(".4f")


def quantities(k: int, n_classes: int) -> list[Quantity]:
    """Every measure in the order of the tables; `k` classes of `n_classes` overlap."""
    always = f" (of {k} classes: always 1)" if k == n_classes else ""
    return [
        Quantity("top1", "top-1 accuracy", "fraction", percent=True),
        Quantity("delta_top1", "Δ accuracy", "fraction", percent=True),
        Quantity("loss", "cross-entropy", "nats"),
        Quantity("delta_loss", "Δ cross-entropy", "nats"),
        Quantity("flip", "flip rate", "fraction", percent=True),
        Quantity(f"top{k}_overlap", f"top-{k} overlap{always}", "fraction", percent=True),
        Quantity("kl", "KL", "nats"),
        Quantity("cosine", "cosine", "fraction"),
        Quantity("cka", "linear CKA", "fraction"),
        Quantity("spearman", "Spearman", "fraction"),
        Quantity("prompt_r", "prompt r", "fraction"),
        Quantity("prompt_kl", "prompt KL", "nats"),
    ]


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
