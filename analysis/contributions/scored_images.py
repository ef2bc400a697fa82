"""The choice of the measured images that are scored: all, those of one class, or a single one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from vit_clt.analysis.contributions.moments import ContributionMoments
from vit_clt.errors import InputError
from vit_clt.readouts.class_names import class_number


def check_image_choice(
    label: int | str | None,
    image: int | None,
    class_names: Sequence[str],
    n_images: int,
    max_groups: int | None = None,
) -> None:
    """Check the class or image to score, as far as is possible before any image is read.

    Raises:
        InputError: both are given, no class has this name, the image is out of range, or one is
            given and there are more images than `max_groups`, so that no sums of it are kept.
    """
    if image is not None and label is not None:
        raise InputError("image", f"is {image} and label is {label}; expected one of them.")
    if image is not None and not 0 <= image < n_images:
        raise InputError("image", f"is {image}; expected a row from 0 to {n_images - 1}.")
    if isinstance(label, str):
        class_number(class_names, label, "label")
    chosen = {"label": label, "image": image}
    for field, value in chosen.items():
        if value is not None and max_groups is not None and n_images > max_groups:
            raise InputError(
                field,
                f"is {value}, but the {n_images} images are added up in {max_groups} groups; "
                f"expected max_groups of {n_images} or more.",
            )


def scored_images(
    moments: ContributionMoments, label: int | str | None, image: int | None
) -> tuple[Int[Tensor, " scored"], str]:
    """The numbers of the images to score, and what captions add to the name of the data.

    Raises:
        InputError: as `check_image_choice`, or no image has this class.
    """
    names, n = moments.class_names, moments.n_images
    check_image_choice(label, image, names, n, len(moments.groups))
    if image is not None:
        return torch.tensor([image]), f", image {image}"
    if label is None:
        return torch.arange(n), ""
    number = class_number(names, label, "label") if isinstance(label, str) else label
    images = (moments.labels == number).nonzero()[:, 0]
    if not len(images):
        raise InputError("label", f"is {label}, which no image has; expected one they have.")
    return images, f", class {names[number] if 0 <= number < len(names) else number}"
