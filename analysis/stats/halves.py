"""Two random halves of a data set: what is chosen on one is measured on the other."""

from __future__ import annotations

import torch

from vit_clt.data.images import ImageData, ImageSubset


def halves(data: ImageData, seed: int) -> tuple[ImageSubset, ImageSubset]:
    """Two disjoint random halves of the images, each in the order of the data.

    Where the number of images is odd, the second half has one more. A set that is chosen and
    measured on the same images could owe its rank to those images. The halves are random, since
    data sets are often ordered, for example by alternating classes.

    Args:
        data: the images.
        seed: seed of the draw.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    middle = len(data) // 2
    return ImageSubset(data, sorted(order[:middle])), ImageSubset(data, sorted(order[middle:]))
