"""The model's own classifier as a readout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.readouts.base import Classifier


class HeadClassifier(Classifier):
    """The classifier that came with the model; its logits are those of the model's own forward.

    Labels must be numbered as the head numbers its classes, which only their counts can show.

    Args:
        vit: the model.
        class_names: names of the classes in label order; numbers where there are none.

    Raises:
        InputError: the model has no classifier, or one of another number of classes.
    """

    def __init__(self, vit: HookedViT, class_names: Sequence[str] = ()):
        n_classes = head_classes(vit)
        if n_classes is None:
            raise InputError(
                "readout", f'is "head"; model {vit.cfg.model} has none: expected text or linear.'
            )
        if n_classes < 2:
            raise InputError(
                "readout", 'is "head", which has one class; expected a head of at least two.'
            )
        if class_names and len(class_names) != n_classes:
            raise InputError(
                "readout",
                f'is "head", which has {n_classes} classes where the data have '
                f"{len(class_names)}; expected as many, in the same order: use linear.",
            )
        self._tower = vit.tower
        self.class_names = list(class_names) or [str(c) for c in range(n_classes)]
        self.name = f"head ({n_classes} classes)"
        self.device = vit.device

    def logits(self, embeddings: Float[Tensor, "image d_embed"]) -> Float[Tensor, "image class"]:
        """The head's logits; it works in the precision of the model."""
        assert self._tower.classifier is not None
        logits = self._tower.classifier(embeddings.to(self._tower.dtype))
        return logits.to(embeddings.dtype)


def head_classes(vit: HookedViT) -> int | None:
    """The number of classes of the model's own classifier; None where it has none."""
    classifier = vit.tower.classifier
    if classifier is None:
        return None
    embedding = torch.zeros(1, vit.cfg.d_embed, dtype=vit.tower.dtype, device=vit.device)
    with torch.no_grad():
        return classifier(embedding).shape[-1]
