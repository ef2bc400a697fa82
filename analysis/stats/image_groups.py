"""Images added up in random groups, so that what a study keeps does not grow with their number.

A study that keeps sums of every image (a kilobyte or more each) keeps sums of at most `max_groups`
groups of images instead. Up to that number of images every group is one image. Beyond it the images
are dealt to the groups at random, n / G to each of the G groups or one more, whatever their class
or place in the data. Totals are those of single images, but for rounding.

An interval is then a bootstrap over groups: a draw takes G of the G groups with replacement and
divides its sums by its number of images. Groups of m images drawn at random have sums of m times
the variance of an image's, so that G of them give a mean the variance that all n = G m images give
it. (Groups of one class each would not: what differs between classes does not average out within
them, and counts m times too much.) The width of an interval from G groups is itself uncertain by a
share of about 1 / sqrt(2 G).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.stats.intervals import bootstrap_means
from vit_clt.choices import MAX_GROUPS
from vit_clt.errors import InputError


@dataclass(frozen=True)
class ImageGroups:
    """The group of every image of a data set."""

    of: Int[Tensor, " image"]
    """Number of each image's group."""
    sizes: Float[Tensor, " image_group"]
    """Number of images of each group, in float64; at least 1."""

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def single(self) -> bool:
        """Whether every group is one image, and group i is image i."""
        return len(self.sizes) == len(self.of)

    @property
    def text(self) -> str:
        """What a bootstrap draws, for captions: "images" or "500 random groups of images"."""
        return "images" if self.single else f"{len(self)} random groups of images"

    def facts(self) -> dict[str, int]:
        """The number of groups, for metrics.json; empty where every group is one image."""
        return {} if self.single else {"image_groups": len(self)}

    def add(self, sums: Tensor, values: Tensor, first: int, dim: int = 0) -> None:
        """Add the values of some images, the first of which has number `first`, to their groups.

        Args:
            sums: sums to add to, in float64, of which dimension `dim` is the group.
            values: values to add, of which dimension `dim` is the image.
            first: number of the first image.
            dim: the dimension.
        """
        groups = self.of[first : first + values.shape[dim]]
        sums.index_add_(dim, groups, values.to(sums.dtype))

    def bootstrap_means(
        self, sums: Float[np.ndarray, "image_group quantity"], seed: int
    ) -> Float[np.ndarray, "resample quantity"]:
        """Mean of each quantity over the images of the groups drawn, in every draw (`intervals`).

        Args:
            sums: sums of each quantity over the images of a group.
            seed: seed of the draws.
        """
        means = bootstrap_means(sums, seed)
        if self.single:
            return means
        return means / bootstrap_means(self.sizes[:, None].numpy(), seed)


def image_groups(n_images: int, max_groups: int | None = MAX_GROUPS, seed: int = 0) -> ImageGroups:
    """Groups of images: one image each up to `max_groups` images, else random ones of equal size.

    Args:
        n_images: number of images.
        max_groups: the most groups; None for one image each.
        seed: seed of the deal.

    Raises:
        InputError: `max_groups` is below 2.
    """
    if max_groups is not None and max_groups < 2:
        raise InputError("max_groups", f"is {max_groups}; expected at least 2.")
    if max_groups is None or n_images <= max_groups:
        return ImageGroups(torch.arange(n_images), torch.ones(n_images, dtype=torch.float64))
    dealt = torch.from_numpy(np.random.default_rng(seed).permutation(n_images) % max_groups)
    return ImageGroups(dealt, torch.bincount(dealt).double())
