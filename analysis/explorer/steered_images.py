"""Steering on single images: class probabilities as features of an image's graph are scaled.

Every MLP is replaced by the CLT with error nodes (`vit_clt.hooks.SteeredPass`), so that a factor of
1 is the model itself. Beside each feature stand random ones of the same layer that are active on
the same image, scaled alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from vit_clt.data.images import ImageData
from vit_clt.hooks import Edit, HookedViT, SteeredPass
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

FACTORS = (-1.0, 0.0, 2.0, 4.0)
"""Factors on z; 1 is the model itself."""
N_RANDOM = 3
"""Random active features of the same layer beside each."""

Feature = tuple[int, int]
"""(source layer, feature number)."""


@dataclass(frozen=True)
class SteeredFeature:
    """Class probabilities of one image as one of its features is scaled."""

    layer: int
    feature: int
    probabilities: Float[np.ndarray, "factor class"]
    """At each of `FACTORS`."""
    random: list[int]
    """Features of the same layer that are scaled alike, drawn from those active on the image."""
    random_change: Float[np.ndarray, "factor class"]
    """Mean over these of |change of probability|; NaN where no other feature is active."""


@dataclass(frozen=True)
class SteeredImage:
    """What scaling some features of one image does to the class probabilities."""

    row: int
    clean: Float[np.ndarray, " class"]
    """Probabilities of the model itself."""
    features: list[SteeredFeature]


@torch.no_grad()
def steered_images(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    features: dict[int, Sequence[Feature]],
    *,
    seed: int = 0,
    progress: bool = False,
) -> list[SteeredImage]:
    """Scale each of some features on its image, one at a time.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: the images.
        classifier: the readout of classes.
        features: by number of the image, features that are active on it.
        seed: seed of the random features.
        progress: show a progress bar.
    """
    found = []
    for row, chosen in Progress(
        features.items(), "steered images", unit=" images", disable=not progress
    ):
        image = data.batch([row])[0].to(clt.b_dec.device)
        run = SteeredPass(vit, clt, image)

        def read(embeddings: torch.Tensor) -> np.ndarray:
            logits = classifier.logits(embeddings.double())
            return logits.softmax(-1)[0].cpu().numpy()

        def scaled(run: SteeredPass, layer: int, feature: int) -> np.ndarray:
            edits = [Edit(layer, feature, "scale", factor) for factor in FACTORS]
            return np.stack([read(run.steered([edit])) for edit in edits])

        clean = read(run.embeddings)
        rng = np.random.default_rng([seed, row])
        of_image = []
        for s, i in sorted(chosen):  # a lower layer's clean terms are kept from pass to pass
            active = run.codes(s).to_dense()[0].ne(0).any(0).nonzero()[:, 0].cpu().numpy()
            others = np.setdiff1d(active, [i])
            random = rng.permutation(others)[:N_RANDOM].tolist()
            changes = [np.abs(scaled(run, s, other) - clean) for other in random]
            nothing = np.full((len(FACTORS), len(clean)), np.nan)
            mean_change = np.mean(changes, axis=0) if changes else nothing
            of_image.append(SteeredFeature(s, i, scaled(run, s, i), random, mean_change))
        found.append(SteeredImage(row, clean, of_image))
    return found
