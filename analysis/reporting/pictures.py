"""Images as the model sees them, back in plain pixels, as PNG data URIs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import Normalize

from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT

if TYPE_CHECKING:
    import plotly.graph_objects as go

SIDE = 96
"""Longest side of a thumbnail in pixels; smaller images keep their size."""
_BEHIND = 512  # of an image behind a panel


def pixels(
    vit: HookedViT, images: Float[Tensor, "image 3 height width"]
) -> UInt8[np.ndarray, "image height width 3"]:
    """Preprocessed images in 8 bits with the model's normalisation undone: mean + std * value.

    They stay resized and cropped as they were for the model; the first pixel row is on top.

    Raises:
        InputError: the model has no preprocessing with a Normalize step.
    """
    steps = getattr(vit.preprocess, "transforms", ())
    normalise = next((step for step in steps if isinstance(step, Normalize)), None)
    if normalise is None:
        raise InputError(
            "vit",
            "has no preprocessing with a Normalize step; expected a model that was loaded by name.",
        )
    mean, std = (torch.as_tensor(v).view(3, 1, 1) for v in (normalise.mean, normalise.std))
    plain = (images.cpu() * std + mean).clamp(0, 1) * 255
    return plain.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def data_uri(image: UInt8[np.ndarray, "height width 3"], side: int = SIDE) -> str:
    """A PNG of at most `side` pixels a side as a data URI, to be embedded in a page."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def lay_picture(
    figure: go.Figure,
    image: UInt8[np.ndarray, "height width 3"],
    axis: str,
    grid: tuple[int, int],
) -> None:
    """Lay an image behind a panel whose axes count its patches, the top left one being (0, 0).

    Args:
        figure: the figure.
        image: the image.
        axis: the panel's axis as plotly numbers it: "" for the first, then "2", "3", ...
        grid: number of patches down and across.
    """
    figure.add_layout_image(
        source=data_uri(image, _BEHIND),
        xref=f"x{axis}",
        yref=f"y{axis}",
        x=-0.5,
        y=-0.5,
        sizex=grid[1],
        sizey=grid[0],
        sizing="stretch",
        layer="below",
    )
