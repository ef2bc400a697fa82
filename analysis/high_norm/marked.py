"""A few images with their high-norm patches, for pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vit_clt.analysis.high_norm.rule import HIGH
from vit_clt.analysis.high_norm.survey import RowSurvey
from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT

N_IMAGES = 4


@dataclass(frozen=True)
class MarkedImage:
    """An image, and the norms of its patches at one layer."""

    image: int
    """Its number in the data, from 0 on."""
    layer: int
    picture: UInt8[np.ndarray, "height width 3"]
    norms: Float[np.ndarray, "down across"]
    """Norms of the residual stream after the block."""
    high: Bool[np.ndarray, "down across"]
    """The patches that are high-norm."""


def marked_images(vit: HookedViT, data: ImageData, survey: RowSurvey) -> list[MarkedImage]:
    """The images with the most high-norm patches, at the layer that has the most of them.

    Where no patch is high-norm, they are the images with the largest norm, at the layer where the
    largest norm is the largest multiple of the median. There are none for a model without a
    preprocessing that can be undone.
    """
    rows = vit.cfg.rows
    norms = survey.norms["stream"][:, :, rows.first_patch :]
    high = survey.groups[:, :, rows.first_patch :] == HIGH
    per_layer = high.sum((1, 2))
    if per_layer.any():
        layer = int(per_layer.argmax())
    else:
        layer = int((norms.amax((1, 2)) / survey.median).argmax())
    # by number of high-norm patches, then by the largest norm
    largest = norms[layer].amax(1).numpy()
    order = np.lexsort((-largest, -high[layer].sum(1).numpy()))[:N_IMAGES].tolist()
    try:
        pictures = pixels(vit, data.batch(order)[0])
    except InputError:
        return []
    return [
        MarkedImage(
            image,
            layer,
            picture,
            norms[layer, image].unflatten(0, rows.grid).numpy(),
            high[layer, image].unflatten(0, rows.grid).numpy(),
        )
        for image, picture in zip(order, pictures, strict=True)
    ]
