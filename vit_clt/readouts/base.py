"""What every readout gives: logits of the classes, and whether they are right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_clt.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """What a classifier says of each image."""

    correct: Bool[Tensor, " image"]
    """Whether the class with the highest logit is the label."""
    loss: Float[Tensor, " image"]
    """Cross-entropy in nats."""
    top: Int[Tensor, " image"]
    """The class with the highest logit."""


class Classifier(ABC):
    """Logits of classes from image embeddings, as `vit(images)` gives them."""

    name: str
    """The readout and what it rests on, as facts, captions and metrics.json name it."""
    class_names: list[str]
    """Names of the classes in label order."""
    device: torch.device
    """Where its weights are."""

    @abstractmethod
    def logits(self, embeddings: Float[Tensor, "image d_embed"]) -> Float[Tensor, "image class"]:
        """The logit of every class, in the embeddings' precision."""

    def check_labels(self, labels: Int[Tensor, " image"]) -> None:
        """Refuse labels that no class name stands for.

        Raises:
            InputError: a label without a class name.
        """
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            raise InputError(
                "labels",
                f"run from {int(labels.min())} to {int(labels.max())}; expected 0 to "
                f"{len(self.class_names) - 1}, one per class name.",
            )

    def read(
        self, embeddings: Float[Tensor, "image d_embed"], labels: Int[Tensor, " image"]
    ) -> Outcome:
        """Of each image, whether the top class is right, and the loss.

        The loss is -log softmax(logits)[label], in nats, summed in float64.

        Raises:
            InputError: a label without a class name.
        """
        self.check_labels(labels)
        labels = labels.to(embeddings.device)
        logits = self.logits(embeddings)
        loss = F.cross_entropy(logits.double(), labels, reduction="none")
        top = logits.argmax(-1)
        return Outcome((top == labels).cpu(), loss.float().cpu(), top.cpu())
