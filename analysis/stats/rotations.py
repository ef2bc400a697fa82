"""Random rotations: controls that keep every length and angle, and no direction."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rotation_of(normals: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """A random rotation or reflection of d dimensions, uniform over all.

    Args:
        normals: independent standard normal numbers, by which a caller keeps its own generator.
    """
    q, r = torch.linalg.qr(normals)
    return q * r.diagonal().sign()
