"""A linear readout: multinomial logistic regression on the embeddings of other images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier

PENALTY = 1e-2
"""Weight of the squared norm of the weights, for embeddings of unit variance."""
HELD_OUT = 0.2
"""Share of the images that its own accuracy is measured on; they are not fitted on."""
_MAX_STEPS = 2000
_GRADIENT = 1e-8
"""The largest entry of the gradient at which the fit is at its optimum."""


class LinearClassifier(Classifier):
    """Logits W u + b, where u are the embeddings with mean 0 and variance 1 in each dimension.

    W and b minimise the mean cross-entropy in nats plus PENALTY / 2 (||W||^2 + ||b||^2), which has
    one minimum. A fifth of the images, drawn at random, is held out; `accuracy` is that of this
    classifier on them, and `majority` that of always naming the most frequent class of the others.

    Args:
        embeddings: of images that nothing else is measured on.
        labels: their classes.
        class_names: names of the classes in label order; numbers where there are none.
        fitted_on: what the images are, for `name`.
        seed: seed of the images that are held out.

    Raises:
        InputError: labels without a class name, embeddings that are not finite numbers, fewer than
            two classes to fit on, or a fit that does not come to its optimum.
    """

    weights: Float[Tensor, "d_embed class"]
    """W and b are kept in float64, for the embeddings as they are."""
    bias: Float[Tensor, " class"]
    accuracy: float
    """A fraction of the images held out."""
    majority: float

    def __init__(
        self,
        embeddings: Float[Tensor, "image d_embed"],
        labels: Int[Tensor, " image"],
        class_names: Sequence[str] = (),
        *,
        fitted_on: str = "these images",
        seed: int = 0,
    ):
        if labels.min() < 0:
            raise InputError("labels", "hold -1, unknown; expected a class for every image fitted.")
        self.class_names = list(class_names) or [str(c) for c in range(int(labels.max()) + 1)]
        self.device = embeddings.device
        self._unseen: set[int] = set()
        self.check_labels(labels)
        if not embeddings.isfinite().all():
            raise InputError("embeddings", "hold NaN or infinite values; expected finite ones.")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        n_held = max(1, round(HELD_OUT * len(labels)))
        held, fitted = order[:n_held].to(self.device), order[n_held:].to(self.device)
        labels = labels.to(self.device)
        counts = torch.bincount(labels[fitted], minlength=len(self.class_names)).cpu()
        if (counts > 0).sum() < 2:
            raise InputError(
                "labels", f"of the {len(fitted)} images to fit on show one class; expected two."
            )
        self._unseen = {c for c, count in enumerate(counts.tolist()) if count == 0}
        self.weights, self.bias = _fit(embeddings[fitted], labels[fitted], len(self.class_names))
        tops = self.logits(embeddings[held].double()).argmax(-1)
        self.accuracy = float((tops == labels[held]).double().mean())
        self.majority = float((labels[held].cpu() == counts.argmax()).double().mean())
        self.name = (
            f"linear ({len(fitted)} images of {fitted_on}; {100 * self.accuracy:.2f} % of {n_held} "
            f"held out, majority {100 * self.majority:.2f} %)"
        )

    @classmethod
    def of_images(
        cls,
        vit: HookedViT,
        train: ImageData,
        class_names: Sequence[str] = (),
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> LinearClassifier:
        """Fit on the embeddings of images, which must not be those that are measured.

        Args:
            vit: the model.
            train: labelled images.
            class_names: names of the classes in label order, which must be those of `train`.
            seed: seed of the images that are held out.
            progress: show a progress bar.

        Raises:
            InputError: classes of other names than those of `train`, or what the class refuses.
        """
        if class_names and train.class_names and list(class_names) != train.class_names:
            raise InputError(
                "train_data", "has other class names than the data; expected the same in order."
            )
        parts = []
        with torch.no_grad():
            n_batches = -(-len(train) // train.batch_size)
            batches = Progress(train, "linear readout", total=n_batches, disable=not progress)
            for images, labels in batches:
                parts.append((vit(images.to(vit.device)), labels))
        embeddings, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(embeddings, labels, class_names, fitted_on=train.name, seed=seed)

    def check_labels(self, labels: Int[Tensor, " image"]) -> None:
        """Refuse labels that no class name stands for, or that no image fitted on shows."""
        super().check_labels(labels)
        unseen = sorted(set(labels.tolist()) & self._unseen)
        if unseen:
            raise InputError(
                "labels",
                f'hold {unseen[0]} ("{self.class_names[unseen[0]]}"), which none of the images '
                "fitted on shows; expected classes that they show.",
            )

    def logits(self, embeddings: Float[Tensor, "image d_embed"]) -> Float[Tensor, "image class"]:
        """W u + b, in the embeddings' precision."""
        return embeddings @ self.weights.to(embeddings.dtype) + self.bias.to(embeddings.dtype)


def _fit(
    embeddings: Float[Tensor, "image d_embed"], labels: Int[Tensor, " image"], n_classes: int
) -> tuple[Float[Tensor, "d_embed class"], Float[Tensor, " class"]]:
    # L-BFGS in float64 from zero: the same images give the same weights
    x = embeddings.double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale[scale == 0] = 1  # a constant dimension carries nothing
    u = (x - mean) / scale
    weights = torch.zeros(u.shape[1], n_classes, dtype=u.dtype, device=u.device, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=u.dtype, device=u.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights, bias],
        max_iter=_MAX_STEPS,
        tolerance_grad=_GRADIENT,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        penalty = PENALTY / 2 * (weights.square().sum() + bias.square().sum())
        value = F.cross_entropy(torch.addmm(bias, u, weights), labels) + penalty
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
        loss()
    left = max(float(g.abs().max()) for g in (weights.grad, bias.grad) if g is not None)
    if not left < 100 * _GRADIENT:
        raise InputError(
            "embeddings",
            f"leave a gradient of {left:.1g} after {_MAX_STEPS} steps of the linear readout; "
            f"expected below {100 * _GRADIENT:g}.",
        )
    weights, bias = weights.detach() / scale[:, None], bias.detach()
    return weights, bias - mean @ weights
