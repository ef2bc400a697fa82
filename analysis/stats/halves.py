"""Two random halves of a data set: what is chosen on one is measured on the other."""

from __future__ import annotations

import torch

from vit_clt.data.images import ImageData, ImageRows


def halves(data: ImageData, seed: int) -> tuple[ImageRows, ImageRows]:
    """Two random halves, each in the data's order; of an odd number the second has one more.

    A set chosen and measured on the same images could owe its place to them. The halves are not
    every other image: data sets are often ordered, by alternating classes even.

    Args:
        data: the images.
        seed: of the draw.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    middle = len(data) // 2
    return ImageRows(data, sorted(order[:middle])), ImageRows(data, sorted(order[middle:]))
