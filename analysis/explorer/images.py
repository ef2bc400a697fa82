"""What the explorer says of every image: the model's answer, its features, its nearest images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from vit_clt.analysis.features.active import active_codes
from vit_clt.analysis.retrieval.index import RetrievalIndex
from vit_clt.analysis.retrieval.neighbours import Neighbours
from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.hooks.points import HOOK_IN
from vit_clt.kernels.codes import Codes
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

N_CLASSES = 5
"""Classes of largest probability that are kept of an image."""
N_FEATURES = 6
"""Features of a layer that are kept of an image."""
N_NEAREST = 5


@dataclass(frozen=True)
class StrongFeatures:
    """The features of one layer that write most on each image, the largest write first.

    The size of a write is max over token rows of |z_i|, times the norm of W_dec[s->.]_i over all
    its targets side by side.
    """

    features: Int[np.ndarray, "image place"]
    """-1 where fewer are active."""
    values: Float[np.ndarray, "image place"]
    """The signed z of largest |z| over the image's rows."""


@dataclass(frozen=True)
class ImageReadings:
    """Answers, features and neighbours of every image of a data set."""

    classes: Int[np.ndarray, "image place"] | None
    """Classes of largest probability, the largest first; None without a classifier."""
    probabilities: Float[np.ndarray, "image place"] | None
    of_label: Float[np.ndarray, " image"] | None
    """Probability of the image's own class; NaN where that is unknown."""
    strong: dict[int, StrongFeatures]
    """By source layer."""
    near: dict[int, Neighbours]
    """The nearest other images by the codes of each source layer."""
    near_tokens: TokenKind
    """The rows whose codes are compared."""


@torch.no_grad()
def image_readings(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier | None,
    *,
    progress: bool = False,
) -> ImageReadings:
    """Read every image: two passes, one of them for the codes that neighbours are found by.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: the images.
        classifier: the readout of classes; None for no answers.
        progress: show progress bars.
    """
    layers = range(clt.config.n_layers)
    names = {s: HOOK_IN.format(l=s) for s in layers}
    norms = {s: clt.W_dec[s].detach().float().norm(dim=-1).norm(dim=0) for s in layers}
    found: dict[int, list[tuple[np.ndarray, ...]]] = {s: [] for s in layers}
    probabilities: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    with Progress(total=len(data), desc="images", unit=" images", disable=not progress) as bar:
        for images, batch_labels in data:
            images = images.to(clt.b_enc.device)
            embeddings, cache = vit.run_clean(images, list(names.values()))
            if classifier is not None:
                probabilities.append(classifier.logits(embeddings.double()).softmax(-1).cpu())
            labels.append(batch_labels.cpu())
            for s, name in names.items():
                found[s].append(_strongest(clt.encode(cache[name], layer=s), norms[s]))
            bar.update(len(images))
    top = of_label = classes = None
    if probabilities:
        all_probabilities, known = torch.cat(probabilities), torch.cat(labels)
        n_classes = all_probabilities.shape[1]
        best = all_probabilities.topk(min(N_CLASSES, n_classes))
        classes, top = best.indices.numpy(), best.values.numpy()
        inside = (known >= 0) & (known < n_classes)
        own = all_probabilities.gather(1, known.clamp(0, n_classes - 1)[:, None])[:, 0]
        of_label = own.masked_fill(~inside, torch.nan).numpy()
    tokens: TokenKind = "cls" if vit.cfg.rows.has_cls else "patch"
    near: dict[int, Neighbours] = {}
    if len(data) > 1:
        index = RetrievalIndex.build(vit, clt, data, tokens=tokens, progress=progress)
        k = min(N_NEAREST, len(data) - 1)
        near = index.search(
            index.corpus, k, tokens=tokens, own_rows=range(len(data)), progress=progress
        )
    strong = {
        s: StrongFeatures(*(np.concatenate(part) for part in zip(*batches, strict=True)))
        for s, batches in found.items()
    }
    return ImageReadings(classes, top, of_label, strong, near, tokens)


def _strongest(codes: Codes, norms: Float[torch.Tensor, " feature"]) -> tuple[np.ndarray, ...]:
    values = active_codes(codes).of_images()
    sizes = values.abs() * norms
    best = sizes.topk(min(N_FEATURES, sizes.shape[1]))
    features = best.indices.masked_fill(best.values == 0, -1)
    return features.cpu().numpy(), values.gather(1, best.indices).float().cpu().numpy()
