"""Zero-shot classification with open_clip's own classifier builder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_clt.choices import check_choice
from vit_clt.data.prompts import TEMPLATE_SETS
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT


def class_number(class_names: Sequence[str], target: str | int, field: str = "target") -> int:
    """The number of the class with this name or number.

    A class whose name is exactly `target` comes first, then the class of that number, then a class
    whose name is `target` but for capitals, and last the only class whose name contains `target`,
    capitals ignored.

    Args:
        class_names: names of the classes in label order.
        target: a name, a part of one, or a number; an int is never taken for a name.
        field: what the error calls `target`.

    Raises:
        InputError: no class fits, several do, or there are no class names.
    """
    names = list(class_names)
    if not names:
        raise InputError(field, f'is "{target}", but there are no class names; expected some.')
    text = str(target)
    fits = [c for c, name in enumerate(names) if name == target]
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    if not fits and is_number and int(text) < len(names):
        return int(text)
    if not fits and text and isinstance(target, str):
        plain, folded = text.casefold(), [name.casefold() for name in names]
        fits = [c for c, name in enumerate(folded) if name == plain]
        fits = fits or [c for c, name in enumerate(folded) if plain in name]
    if len(fits) != 1:
        named = [names[c] for c in fits] or names
        known = ", ".join([*named[:10], *(["..."] if len(named) > 10 else [])])
        count = f"{len(fits)} class names" if fits else "no class name"
        raise InputError(
            field,
            f'is "{text[:100]}", which fits {count}; expected one of {known}, or a number '
            f"from 0 to {len(names) - 1}.",
        )
    return fits[0]


@dataclass(frozen=True)
class Outcome:
    """Zero-shot outcome of each image."""

    correct: Bool[Tensor, " image"]
    """Whether the class with the highest logit is the label."""
    loss: Float[Tensor, " image"]
    """Cross-entropy in nats."""
    top: Int[Tensor, " image"]
    """The class with the highest logit."""


class ZeroShot:
    """A linear classifier whose columns are the unit text embeddings of the class names.

    Args:
        vit: the model whose text tower and logit scale are used.
        class_names: names of the classes in label order, which are put into the templates.
        templates: "single" ("a photo of a {}."), "ensemble" (the 18 CIFAR templates), or a list.

    Raises:
        InputError: there are no class names, a template does not have exactly one "{}", or the
            model has no tokenizer, or one that cannot be loaded.
    """

    weights: Float[Tensor, "d_embed class"]

    def __init__(
        self,
        vit: HookedViT,
        class_names: Sequence[str],
        templates: str | Sequence[str] = "ensemble",
    ):
        if not class_names:
            raise InputError("class_names", "is empty; zero-shot accuracy needs a name per label.")
        if vit.tokenizer is None:
            raise InputError("vit", "has no tokenizer; expected a ViT with a text tower.")
        if isinstance(templates, str):
            check_choice("templates", templates, TEMPLATE_SETS)
            self.name = templates
            templates = TEMPLATE_SETS[templates]
        else:
            self.name = f"{len(templates)} templates"
        if not templates:
            raise InputError("templates", "is empty; expected at least one.")
        for template in templates:
            if template.count("{}") != 1:
                raise InputError("templates", f'holds "{template}"; expected "{{}}" once in each.')
        self.class_names = list(class_names)
        self.templates = list(templates)
        with torch.no_grad():
            self.weights = open_clip.build_zero_shot_classifier(
                vit.text_tower,
                tokenizer=vit.tokenizer,
                classnames=self.class_names,
                templates=self.templates,
                device=vit.device,
            )
            self.logit_scale = vit.logit_scale

    def logits(self, embeddings: Float[Tensor, "image d_embed"]) -> Float[Tensor, "image class"]:
        """exp(logit_scale) times the cosine of image and class, in the embeddings' precision."""
        unit = F.normalize(embeddings, dim=-1)
        return self.logit_scale * unit @ self.weights.to(unit.dtype)

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
        """The zero-shot outcome of each image: whether the top class is right, and the loss.

        Raises:
            InputError: a label without a class name.
        """
        self.check_labels(labels)
        labels = labels.to(embeddings.device)
        logits = self.logits(embeddings)
        loss = F.cross_entropy(logits.double(), labels, reduction="none")
        top = logits.argmax(-1)
        return Outcome((top == labels).cpu(), loss.float().cpu(), top.cpu())
