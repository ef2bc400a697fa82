"""The choice of the measured images that are scored: all, those of one class, or a single one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from vit_clt.analysis.contributions.moments import ContributionMoments
from vit_clt.errors import InputError
from vit_clt.zero_shot import class_number


def check_image_choice(
    label: int | str | None, image: int | None, class_names: Sequence[str], n_images: int
) -> None:
    """Check the class or image to score, as far as is possible before any image is read.

    Raises:
        InputError: both are given, no class has this name, or the image is out of range.
    """
    if image is not None and label is not None:
        raise InputError("image", f"is {image} and label is {label}; expected one of them.")
    if image is not None and not 0 <= image < n_images:
        raise InputError("image", f"is {image}; expected a row from 0 to {n_images - 1}.")
    if isinstance(label, str):
        class_number(class_names, label, "label")


def scored_images(
    moments: ContributionMoments, label: int | str | None, image: int | None
) -> tuple[Int[Tensor, " scored"], str]:
    """The numbers of the images to score, and what captions add to the name of the data.

    Raises:
        InputError: as `check_image_choice`, or no image has this class.
    """
    names, n = moments.class_names, moments.n_images
    check_image_choice(label, image, names, n)
    if image is not None:
        return torch.tensor([image]), f", image {image}"
    if label is None:
        return torch.arange(n), ""
    number = class_number(names, label, "label") if isinstance(label, str) else label
    images = (moments.labels == number).nonzero()[:, 0]
    if not len(images):
        raise InputError("label", f"is {label}, which no image has; expected one they have.")
    return images, f", class {names[number] if 0 <= number < len(names) else number}"
