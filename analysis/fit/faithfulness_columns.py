"""The measures of surrogate faithfulness, and the values per image that they average."""

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
from vit_clt.readouts.base import Classifier

LEADING = 6
"""Number of columns of `per_image` before those of the prompt templates."""
_CHUNK = 1024


@dataclass(frozen=True)
class Quantity:
    """Name, title and unit of a measure; docs/definitions.md defines it."""

    name: str
    title: str
    unit: Literal["fraction", "nats"]
    percent: bool = False
    """Whether tables and figures show it times 100."""

    @property
    def label(self) -> str:
        """The title with the unit in which tables and figures show the measure."""
        if self.percent:
            return f"{self.title} (%)"
        return f"{self.title} (nats)" if self.unit == "nats" else self.title

    def text(self, value: Interval) -> str:
        """A value as tables show it, with its interval where it has one; "undefined" for NaN."""
        if isnan(value):
            return "undefined"
        return value.text(".2f", 100) if self.percent else value.text(".4f")


def quantities(k: int, n_classes: int, prompts: bool = True) -> list[Quantity]:
    """All measures in the order of the tables; the overlap is of the top `k` of `n_classes`.

    Those of prompts are left out where no prompts are compared.
    """
    always = f" (of {k} classes: always 1)" if k == n_classes else ""
    measures = [
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
    ]
    if prompts:
        measures.append(Quantity("prompt_r", "prompt r", "fraction"))
        measures.append(Quantity("prompt_kl", "prompt KL", "nats"))
    return measures


def per_image(
    gathered: SurrogateEmbeddings,
    version: Version,
    classifier: Classifier,
    prompts: Sequence[Classifier],
    k: int,
) -> Float[np.ndarray, "image column"]:
    """The values of every image that measures average over images, in float64.

    The columns are: correct, loss, flipped, top-k overlap, KL, cosine; then correct for every
    prompt template, then KL for every prompt template.

    Args:
        gathered: embeddings and labels.
        version: version that is compared with "original".
        classifier: the readout of the leading columns.
        prompts: one classifier for each prompt template.
        k: number of classes that the overlap compares.
    """
    device = classifier.device
    original, altered = gathered.versions["original"], gathered.versions[version]
    chunks = []
    for start in range(0, len(gathered), _CHUNK):
        part = slice(start, start + _CHUNK)
        labels = gathered.labels[part].to(device)
        a, b = (x[part].to(device, torch.float64) for x in (original, altered))
        p, q = classifier.logits(a), classifier.logits(b)
        columns = [
            q.argmax(-1) == labels,
            F.cross_entropy(q, labels, reduction="none"),
            q.argmax(-1) != p.argmax(-1),
            top_overlap(p, q, k),
            kl_divergence(p, q),
            F.cosine_similarity(a, b, dim=-1),
        ]
        assert len(columns) == LEADING
        pairs = [(prompt.logits(a), prompt.logits(b)) for prompt in prompts]
        columns += [q.argmax(-1) == labels for _, q in pairs]
        columns += [kl_divergence(p, q) for p, q in pairs]
        chunks.append(torch.stack([column.double() for column in columns], dim=1).cpu())
    return torch.cat(chunks).numpy()


def averages(
    means: Float[np.ndarray, "draw column"], original: Float[np.ndarray, "draw column"], k: int
) -> dict[str, Float[np.ndarray, " draw"]]:
    """Measures by name, for every draw, from means of the columns of `per_image` over images.

    Args:
        means: means of a version of the model.
        original: means of the unaltered model, on the same images.
        k: number of classes that the overlap compares.
    """
    top1, loss, flip, overlap, kl, cosine = means[:, :LEADING].T
    values = {
        "top1": top1,
        "delta_top1": top1 - original[:, 0],
        "loss": loss,
        "delta_loss": loss - original[:, 1],
        "flip": flip,
        f"top{k}_overlap": overlap,
        "kl": kl,
        "cosine": cosine,
    }
    if means.shape[1] > LEADING:
        right, prompt_kl = np.split(means[:, LEADING:], 2, axis=1)
        right_originally, _ = np.split(original[:, LEADING:], 2, axis=1)
        values["prompt_r"] = pearson(right_originally, right)
        values["prompt_kl"] = prompt_kl.mean(-1)
    return values
