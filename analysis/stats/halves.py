"""Random parts of a data set: two halves, and a sample that bounds what a measurement costs."""

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


def random_images(data: ImageData, most: int, seed: int) -> ImageData:
    """The images themselves, or `most` random ones of them where there are more, in their order.

    Args:
        data: the images.
        most: the most images that are wanted.
        seed: seed of the draw.
    """
    if len(data) <= most:
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return ImageSubset(data, sorted(order[:most].tolist()))
