"""Which readout a model and a data set allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from vit_clt.choices import Readout, Templates, check_choice
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.readouts.base import Classifier
from vit_clt.readouts.head import HeadClassifier, head_classes
from vit_clt.readouts.linear import LinearClassifier
from vit_clt.readouts.zero_shot import ZeroShot


def choose_classifier(
    vit: HookedViT,
    data: ImageData,
    train_images: Callable[[], ImageData],
    readout: Readout | None = None,
    *,
    templates: Templates = "ensemble",
    seed: int = 0,
    progress: bool = False,
) -> Classifier:
    """The readout of this name, or the first of three that the model and the data allow.

    They are the text tower, the model's own head if it has as many classes as the data, and a
    linear classifier fitted on other images.

    Args:
        vit: the model.
        data: the images that are measured, whose class names are taken.
        train_images: loads the images that a linear classifier is fitted on.
        readout: "text", "head" or "linear".
        templates: prompts of the text tower.
        seed: seed of the images that a linear classifier holds out.
        progress: show a progress bar of the embeddings that a linear classifier is fitted on.

    Raises:
        InputError: the readout is not there or does not fit, or, without one, none is possible.
    """
    if readout is not None:
        check_choice("readout", readout, get_args(Readout))
    names, n_head = data.class_names, head_classes(vit)
    if readout == "text" or (readout is None and vit.has_text_tower):
        return ZeroShot(vit, names, templates)
    if readout == "head" or (readout is None and n_head == len(names) > 1):
        return HeadClassifier(vit, names)
    try:
        train = train_images()
    except InputError as error:
        if readout is not None:
            raise
        head = f"a head of {n_head} classes for {len(names)} class names" if n_head else "no head"
        raise InputError(
            "readout",
            f"has no default: {vit.cfg.model} has no text tower and {head}, and for a linear one "
            f"{error.without_remedy()}",
        ) from error
    return LinearClassifier.of_images(vit, train, names, seed=seed, progress=progress)
