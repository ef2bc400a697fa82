"""Zero-shot classification with open_clip's own classifier builder."""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vit_clt.choices import check_choice
from vit_clt.data.prompts import TEMPLATE_SETS
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.readouts.base import Classifier


class ZeroShot(Classifier):
    """The text tower: a linear classifier of the unit text embeddings of the class names.

    The logits are exp(logit_scale) cos(image, class), plus the logit bias b of a model that has one
    (SigLIP), as in the model's own forward. Such a model is trained with a sigmoid for each pair of
    image and text, but one label an image asks which class fits best: probabilities are the
    softmax over classes here too, in which b cancels, exp(z_c + b) / sum_k exp(z_k + b) =
    exp(z_c) / sum_k exp(z_k).

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
        if not vit.has_text_tower:
            raise InputError("model", f"is {vit.cfg.model}, which has no text tower; expected one.")
        if vit.tokenizer is None:
            raise InputError("vit", "has no tokenizer; expected a ViT with a text tower.")
        if isinstance(templates, str):
            check_choice("templates", templates, TEMPLATE_SETS)
            self.name = f"text tower (templates: {templates})"
            templates = TEMPLATE_SETS[templates]
        else:
            self.name = f"text tower ({len(templates)} templates)"
        if not templates:
            raise InputError("templates", "is empty; expected at least one.")
        for template in templates:
            if template.count("{}") != 1:
                raise InputError("templates", f'holds "{template}"; expected "{{}}" once in each.')
        self.class_names = list(class_names)
        self.templates = list(templates)
        self.device = vit.device
        with torch.no_grad():
            self.weights = open_clip.build_zero_shot_classifier(
                vit.text_tower,
                tokenizer=vit.tokenizer,
                classnames=self.class_names,
                templates=self.templates,
                device=vit.device,
            )
            self.logit_scale = vit.logit_scale
            self.logit_bias = vit.logit_bias

    def logits(self, embeddings: Float[Tensor, "image d_embed"]) -> Float[Tensor, "image class"]:
        """exp(logit_scale) times the cosine of image and class, plus the model's logit bias."""
        unit = F.normalize(embeddings, dim=-1)
        logits = self.logit_scale * unit @ self.weights.to(unit.dtype)
        return logits if self.logit_bias is None else logits + self.logit_bias
