"""Steering on single images: class probabilities as features of an image's graph are scaled.

Every MLP is replaced by the CLT with error nodes (`vit_clt.hooks.SteeredPass`), so that a factor of
1 is the model itself. Beside each feature stand controls: the features of the same layer whose
write on the same image is nearest in size, scaled alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from vit_clt.analysis.features.active import active_codes
from vit_clt.data.images import ImageData
from vit_clt.hooks import Edit, HookedViT, SteeredPass
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

FACTORS = (-1.0, 0.0, 2.0, 4.0)
"""Factors on z; 1 is the model itself."""
N_CONTROLS = 5
"""Features of the same layer beside each."""
ALWAYS_ON = 0.9
"""A feature that fires on more than this share of the images is a constant rather than a feature of
an image: it is neither steered nor a control."""

Feature = tuple[int, int]
"""(source layer, feature number)."""


@dataclass(frozen=True)
class SteeredFeature:
    """Class probabilities of one image as one of its features is scaled."""

    layer: int
    feature: int
    probabilities: Float[np.ndarray, "factor class"]
    """At each of `FACTORS`."""
    controls: list[int]
    """Features of the same layer, active on the image, whose write there is nearest in size."""
    control_change: Float[np.ndarray, "factor class"]
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
    features: Mapping[int, Sequence[Feature]],
    image_rates: Mapping[int, Float[np.ndarray, " feature"]],
    *,
    progress: bool = False,
) -> list[SteeredImage]:
    """Scale each of some features on its image, one at a time.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: the images.
        classifier: the readout of classes.
        features: by number of the image, features that are active on it.
        image_rates: by layer, the share of images on which each feature is active.
        progress: show a progress bar.
    """
    norms = {
        s: clt.W_dec[s].detach().float().norm(dim=-1).norm(dim=0)
        for s in range(clt.config.n_layers)
    }
    found = []
    bar = Progress(features.items(), "steered images", unit=" images", disable=not progress)
    for row, chosen in bar:
        image = data.batch([row])[0].to(clt.b_dec.device)
        run = SteeredPass(vit, clt, image)

        def read(embeddings: torch.Tensor) -> np.ndarray:
            logits = classifier.logits(embeddings.double())
            return logits.softmax(-1)[0].cpu().numpy()

        def scaled(run: SteeredPass, layer: int, feature: int) -> np.ndarray:
            edits = [Edit(layer, feature, "scale", factor) for factor in FACTORS]
            return np.stack([read(run.steered([edit])) for edit in edits])

        clean = read(run.embeddings)
        of_image = []
        for s, i in sorted(chosen):  # a lower layer's clean terms are kept from pass to pass
            sizes = active_codes(run.codes(s)).of_images()[0].abs() * norms[s]
            controls = _nearest_in_size(sizes.cpu().numpy(), i, image_rates[s])
            changes = [np.abs(scaled(run, s, other) - clean) for other in controls]
            nothing = np.full((len(FACTORS), len(clean)), np.nan)
            mean_change = np.mean(changes, axis=0) if changes else nothing
            of_image.append(SteeredFeature(s, i, scaled(run, s, i), controls, mean_change))
        found.append(SteeredImage(row, clean, of_image))
    return found


def _nearest_in_size(
    sizes: Float[np.ndarray, " feature"], feature: int, image_rates: Float[np.ndarray, " feature"]
) -> list[int]:
    """Active features whose size is nearest to that of one of them; ties: the lower number."""
    others = np.flatnonzero((sizes > 0) & (image_rates <= ALWAYS_ON))
    others = others[others != feature]
    apart = np.abs(sizes[others] - sizes[feature])
    return others[np.argsort(apart, kind="stable")[:N_CONTROLS]].tolist()
