"""The texts that features may be named with, and how well an image matches each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.stats.names import short_names
from vit_clt.data.prompts import SINGLE_TEMPLATE
from vit_clt.data.words import MAX_TEXT
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier
from vit_clt.readouts.zero_shot import ZeroShot

_AT_ONCE = 64  # texts whose embeddings are made between two steps of the progress bar


@dataclass(frozen=True)
class Vocabulary:
    """Texts, and the directions of the embedding along which images match them.

        match of an image and text w = <u, t_w - mean over texts of t>

    u is the unit embedding and t_w the unit embedding of the text, for a text tower; for any other
    readout u is the embedding as it is, and t_w what the logit of class w reads from it. Less the
    mean, since some images match all texts better than others do.
    """

    texts: list[str]
    source: str
    """Where the texts come from, for captions."""
    directions: Float[Tensor, "text d_embed"]
    """t_w."""
    unit: bool
    """Whether u has length 1."""

    def __post_init__(self) -> None:
        """Refuse a vocabulary in which no text can be better than another."""
        if len(self.texts) < 2:
            raise InputError(
                "vocabulary",
                f"holds {len(self.texts)} texts; expected at least two, one a line.",
            )

    @cached_property
    def contrasts(self) -> Float[Tensor, "text d_embed"]:
        """t_w - mean t."""
        directions = self.directions.double()
        return (directions - directions.mean(0)).to(self.directions.dtype)

    def points(self, embeddings: Float[Tensor, "image d_embed"]) -> Float[Tensor, "image d_embed"]:
        """u of embeddings as `vit(images)` gives them."""
        return F.normalize(embeddings, dim=-1) if self.unit else embeddings

    def match(self, points: Float[Tensor, "image d_embed"]) -> Float[Tensor, "image text"]:
        """How well images match the texts, from their u."""
        return points @ self.contrasts.T.to(points.dtype)

    @classmethod
    def of_classes(cls, classifier: Classifier, d_embed: int) -> Vocabulary:
        """The classes of a readout whose logits are linear in the embedding, unit or not.

        Names are without the words that all of them begin with.
        """
        names = list(short_names(classifier.class_names).values())
        source = f"{len(names)} classes, {classifier.name}"
        if isinstance(classifier, ZeroShot):
            return cls(names, source, classifier.weights.T, unit=True)
        at = torch.eye(d_embed, device=classifier.device)
        with torch.no_grad():
            logits = classifier.logits(torch.cat([at, torch.zeros_like(at[:1])]))
        return cls(names, source, (logits[:-1] - logits[-1]).T, unit=False)

    @classmethod
    def of_texts(
        cls,
        vit: HookedViT,
        texts: Sequence[str],
        source: str,
        *,
        progress: bool = False,
    ) -> Vocabulary:
        """Texts in the prompt "a photo of a {}.", embedded by the model's own text tower.

        Args:
            vit: a model with a text tower.
            texts: the texts; one that is there twice counts once.
            source: where they come from, for captions.
            progress: show a progress bar.

        Raises:
            InputError: no texts, or a text that the tokenizer cuts off; the model has no text tower
                or no tokenizer.
        """
        texts = list(dict.fromkeys(texts))
        for text in texts:
            if len(text) > MAX_TEXT:
                raise InputError(
                    "vocabulary",
                    f'holds "{text[:40]}", of {len(text)} characters; expected up to {MAX_TEXT}.',
                )
        if not vit.has_text_tower or vit.tokenizer is None:
            raise InputError(
                "vocabulary",
                f"is given, but {vit.cfg.model} has no text tower; expected none, for the classes "
                "of the readout.",
            )
        _check_whole(vit, texts)
        bar = Progress(
            range(0, len(texts), _AT_ONCE), "vocabulary", unit=" batches", disable=not progress
        )
        parts = [ZeroShot(vit, texts[i : i + _AT_ONCE], SINGLE_TEMPLATE).weights.T for i in bar]
        directions = torch.cat(parts) if parts else torch.zeros(0, vit.cfg.d_embed)
        return cls(texts, f"{len(texts)} texts of {source}", directions, unit=True)


def _check_whole(vit: HookedViT, texts: Iterable[str]) -> None:
    """Refuse a text whose prompt fills the tokenizer's context, as one that is cut off does."""
    assert vit.tokenizer is not None
    padding = vit.tokenizer(["a"])[0, -1]
    [template] = SINGLE_TEMPLATE
    for text in texts:
        tokens = vit.tokenizer([template.format(text)])[0]
        # an end token may be what pads: a prompt that is cut off ends in it too, after a word
        if (tokens[-2:] != padding).any():
            raise InputError(
                "vocabulary",
                f'holds "{text[:60]}", whose prompt fills the {len(tokens)} tokens that the text '
                "tower reads, or is cut off; expected shorter texts.",
            )
