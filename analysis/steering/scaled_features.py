"""How a class' logit and probability change when one feature is suppressed or doubled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.stats.similarity import kl_divergence
from vit_clt.analysis.steering.readings import known_labels
from vit_clt.analysis.steering.versions import Feature
from vit_clt.data.images import ImageData
from vit_clt.hooks import Edit, HookedViT, Rows, SteeredPass
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

SCALES = (0.0, 2.0)
"""Factors on a feature: 0 suppresses it, 2 doubles it."""


@torch.no_grad()
def scaled_features(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    label: int,
    features: Sequence[Feature],
    tokens: Rows,
    progress: bool,
) -> tuple[dict[str, float], Float[np.ndarray, "image feature scale measure"]]:
    """The unsteered model's measures, and how those of each image change with each feature scaled.

    Everything downstream is recomputed, with error nodes. Measures by name: "contrast" (the class'
    logit minus the mean of the others'), "probability", "kl" and, with labels, "top1" and "loss".
    The first result holds their means over images.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: the images.
        classifier: the readout, of at least two classes.
        label: the class.
        features: the features that are scaled, one at a time, by each of `SCALES`.
        tokens: token rows on which they are scaled.
        progress: show a progress bar.
    """
    labels = torch.cat([batch for _, batch in data])
    labelled = known_labels(classifier, labels) is not None
    names = ["contrast", "probability", "kl", *(["top1", "loss"] if labelled else [])]
    changes = np.zeros((len(data), len(features), len(SCALES), len(names)))
    before = np.zeros((len(data), len(names)))
    # features of one layer share what a pass keeps
    order = sorted(range(len(features)), key=features.__getitem__)
    bar = Progress(
        total=len(data) * len(features), desc="steering", unit=" images", disable=not progress
    )
    with bar:
        for start in range(0, len(data), data.batch_size):
            batch = slice(start, min(start + data.batch_size, len(data)))
            images, batch_labels = data.batch(range(batch.start, batch.stop))
            run = SteeredPass(vit, clt, images.to(clt.b_dec.device))
            clean = classifier.logits(run.embeddings.double()).cpu()
            before[batch] = _columns(clean, clean, label, batch_labels if labelled else None)
            for column in order:
                s, i = features[column]
                for j, scale in enumerate(SCALES):
                    embeddings = run.steered([Edit(s, i, "scale", scale, tokens)])
                    logits = classifier.logits(embeddings.double()).cpu()
                    values = _columns(logits, clean, label, batch_labels if labelled else None)
                    changes[batch, column, j] = values - before[batch]
                bar.update(len(images))
    return dict(zip(names, before.mean(0).tolist(), strict=True)), changes


def _columns(
    logits: Float[Tensor, "image class"],
    clean: Float[Tensor, "image class"],
    label: int,
    labels: Tensor | None,
) -> Float[np.ndarray, "image measure"]:
    others = (logits.sum(-1) - logits[:, label]) / (logits.shape[1] - 1)
    columns = [
        logits[:, label] - others,
        logits.softmax(-1)[:, label],
        kl_divergence(clean, logits),
    ]
    if labels is not None:
        columns.append((logits.argmax(-1) == labels).double())
        columns.append(F.cross_entropy(logits, labels, reduction="none"))
    return torch.stack(columns, dim=1).numpy()
