"""Effects of the same interventions on a ViT and on its surrogates, image by image.

An effect is what an intervention changes at the readout, in each model against its own unaltered
pass: of the loss, in nats, and of the logits, less their mean over the classes, which no softmax
sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.causal.effect_agreement import Products
from vit_clt.analysis.causal.first_order import LossGradients
from vit_clt.analysis.causal.interventions import FillValues, Intervention
from vit_clt.analysis.causal.targets import PATHS, Path
from vit_clt.analysis.stats.names import LayerSet
from vit_clt.analysis.stats.readings import Readings, gather_readings
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.passes.overwritten import Overwrite, SitePass
from vit_clt.hooks.passes.surrogate import SurrogatePass
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier, Outcome
from vit_clt.transcoder.model import CrossLayerTranscoder

VIT, FIRST_ORDER = "ViT", "first order"
"""Names of the ViT and of its first-order effects among the models."""


@dataclass(frozen=True)
class Change:
    """What interventions change at the readout of one model, for one batch."""

    loss: Float[Tensor, "batch set"]
    logits: Float[Tensor, "batch set class"]
    """Less their mean over the classes."""


@dataclass
class Effects:
    """Effects of one intervention along one path, on each set of layers."""

    sets: list[LayerSet]
    loss: dict[str, Float[np.ndarray, "image set"]]
    """The change of each image's loss in nats, by model: the ViT, surrogates, first order."""
    logits: dict[str, Products] = field(default_factory=dict)
    """Products of the changes of the logits, by surrogate."""

    @classmethod
    def empty(
        cls, n_images: int, sets: list[LayerSet], surrogates: Iterable[str], n_classes: int
    ) -> Effects:
        """Zeros in the place of all effects."""
        shape = n_images, len(sets)
        models = [VIT, *surrogates, FIRST_ORDER]
        effects = cls(sets, {model: np.zeros(shape) for model in models})
        nothing = np.zeros(shape)
        for model in models[1:-1]:
            # logits less their mean sum to 0
            xx, yy, xy, error = (np.zeros(shape) for _ in range(4))
            crossed = np.zeros((len(sets), len(sets)))
            effects.logits[model] = Products(
                n_classes, nothing, nothing, xx, yy, xy, error, crossed
            )
        return effects

    def products(self, model: str) -> dict[str, Products]:
        """Products of the ViT's effects with those of another model, on "loss" and "logits"."""
        of_loss = Products.of_numbers(self.loss[VIT], self.loss[model])
        return {"loss": of_loss} | ({"logits": self.logits[model]} if model in self.logits else {})

    def add(
        self,
        images: Sequence[int],
        changes: Mapping[str, Change],
        first_order: Float[Tensor, "batch layer"],
    ) -> None:
        """Add a batch.

        Args:
            images: their numbers.
            changes: by model, what changes at the readout.
            first_order: first-order effects of each layer alone on the loss.
        """
        sums_over_sets = [first_order[:, list(layers)].sum(1) for layers in self.sets]
        self.loss[FIRST_ORDER][images] = torch.stack(sums_over_sets, 1).cpu().numpy()
        x = changes[VIT].logits
        for model, change in changes.items():
            self.loss[model][images] = change.loss.cpu().numpy()
            if model == VIT:
                continue
            sums, y = self.logits[model], change.logits
            for into, product in (
                (sums.xx, x * x),
                (sums.yy, y * y),
                (sums.xy, x * y),
                (sums.error, (y - x).square()),
            ):
                into[images] = product.sum(-1).cpu().numpy()
            sums.crossed[:] += torch.einsum("ijc,ikc->jk", x, y).cpu().numpy()


@dataclass(frozen=True)
class GatheredEffects:
    """Effects by intervention and path, and what the unaltered models answer."""

    effects: dict[tuple[Intervention, Path], Effects]
    unaltered: Readings
    """Readings of the ViT and of every surrogate."""
    l0: dict[str, float]
    """Active features a token row and layer in each unaltered surrogate, over all rows."""


@torch.no_grad()
def gather_effects(
    vit: HookedViT,
    surrogates: Mapping[str, CrossLayerTranscoder],
    data: ImageData,
    classifier: Classifier,
    interventions: Sequence[Intervention],
    sets: Sequence[LayerSet],
    *,
    seed: int = 0,
    progress: bool = False,
) -> GatheredEffects:
    """Measure all effects in one pass over the images.

    Args:
        vit: the ViT.
        surrogates: by name, the transcoders that take the place of its MLPs.
        data: labelled images.
        classifier: the readout.
        interventions: what is done.
        sets: the layers it is done to.
        seed: seed of donors and of the bootstrap of readings.
        progress: show progress bars.

    Raises:
        InputError: labels have no names, or activations are NaN or infinite.
    """
    fills = FillValues(vit, data, interventions, seed, progress)
    n, n_classes = len(data), len(classifier.class_names)
    effects = {
        (each, path): Effects.empty(n, each.reaching(vit, sets), surrogates, n_classes)
        for each in interventions
        for path in PATHS
        if path == "total" or each.acts_directly(vit)
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in (VIT, *surrogates)}
    active = dict.fromkeys(surrogates, 0.0)
    with Progress(total=n, desc="surrogate", unit=" images", disable=not progress) as bar:
        for start in range(0, n, data.batch_size):
            batch = range(start, min(start + data.batch_size, n))
            images, labels = data.batch(batch)
            classifier.check_labels(labels)
            images = images.to(vit.device)
            fills.begin(batch)
            gradients = LossGradients(vit, images, labels, classifier)
            for each in interventions:
                rows: dict[str, Any] = {"site": each.site, "ablated": each.ablated}
                clean = SitePass(vit, images, **rows)
                replaced = {
                    name: SurrogatePass(vit, images, clt, **rows)
                    for name, clt in surrogates.items()
                }
                if each == interventions[0]:
                    for name, one in {VIT: clean, **replaced}.items():
                        outcomes[name].append(classifier.read(one.embeddings, labels))
                    for name, surrogate in replaced.items():
                        active[name] += surrogate.l0() * len(batch) / n
                values = fills.of(each)
                for path in PATHS:
                    if (each, path) in effects:
                        found = effects[each, path]
                        overwrites = [(layers, values) for layers in found.sets]
                        changes = {
                            name: _changes(one, overwrites, path, classifier, labels)
                            for name, one in {VIT: clean, **replaced}.items()
                        }
                        found.add(batch, changes, gradients.effects(clean, values, path))
            bar.update(len(batch))
    if not all(np.isfinite(loss).all() for e in effects.values() for loss in e.loss.values()):
        raise InputError("effects on the loss hold NaN or infinite values; expected finite ones.")
    return GatheredEffects(effects, gather_readings(outcomes, seed), active)


def _changes(
    clean: SitePass,
    overwrites: Sequence[Overwrite],
    path: Path,
    classifier: Classifier,
    labels: Int[Tensor, " batch"],
) -> Change:
    loss, logits = _read(clean.embeddings, classifier, labels)
    altered = (
        clean.total_on_output(overwrites)
        if path == "total"
        else ((i, clean.direct_on_output(*each)) for i, each in enumerate(overwrites))
    )
    by_number = {i: _read(embeddings, classifier, labels) for i, embeddings in altered}
    changed = [by_number[i] for i in range(len(overwrites))]
    return Change(
        torch.stack([each - loss for each, _ in changed], 1),
        torch.stack([each - logits for _, each in changed], 1),
    )


def _read(
    embeddings: Tensor, classifier: Classifier, labels: Tensor
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch class"]]:
    # in float64, since an effect may be a small difference
    logits = classifier.logits(embeddings).double()
    loss = F.cross_entropy(logits, labels.to(logits.device), reduction="none")
    return loss, logits - logits.mean(-1, keepdim=True)
