"""Overlap with annotated regions: does a unit fire within one category's boxes or outlines?

Of a region kind (boxes, or outlines), let s_p be the share of patch p that the regions of category
c cover in an image. Over the images that show c, with v = |activation| of a unit on the patches,

    inside(c) = sum_images sum_p v_p s_p / sum_images sum_p v_p
    floor(c)  = sum_images mean_p(s_p) sum_p v_p / sum_images sum_p v_p

`inside` is the share of its activation that lies within the regions, weighted by area, and `floor`
its mean over all ways to deal each image's activations to its patches. The category is the one with
the largest inside - floor on a random half of the images, and both are measured on the other half.

Regions pass through the preprocessing of the model as pictures, white on black, and so lie where
the image's own pixels lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vit_clt.data.coco_regions import Region
from vit_clt.data.images import ImageData

MIN_SHOWN = 5
"""Images of a half on which the unit is active and the category is shown, at least."""
KINDS: Mapping[str, Callable[[Region], Image.Image]] = {
    "box": Region.boxed,
    "mask": Region.outlined,
}
Shares = dict[int, Float[Tensor, "kind patch"]]
"""The share of each patch that a category covers, by category."""


@dataclass(frozen=True)
class CoveredPatches:
    """The regions of every image, on its patches."""

    shares: Sequence[Shares]
    halves: Sequence[int]
    """The half of each image, 0 or 1, drawn at random."""
    categories: Sequence[str]

    @classmethod
    def of_images(cls, data: ImageData, grid: tuple[int, int], seed: int) -> CoveredPatches | None:
        """The patches that regions cover; None where the data have no regions.

        Args:
            data: the images.
            grid: number of patches down and across.
            seed: seed of the halves.
        """
        transform = data.transform
        if data.regions is None or transform is None:
            return None
        shares = [patch_shares(each, transform, grid) for each in data.regions()]
        order = np.random.default_rng(seed).permutation(len(shares))
        return cls(shares, (order % 2).tolist(), data.class_names)


def patch_shares(
    regions: Sequence[Region],
    transform: Callable[[Image.Image], Tensor],
    grid: tuple[int, int],
) -> Shares:
    """The shares of an image's patches that the regions of each of its categories cover.

    Args:
        regions: of the image.
        transform: the model's preprocessing.
        grid: number of patches down and across.
    """
    of_category: dict[int, list[Region]] = {}
    for region in regions:
        of_category.setdefault(region.category, []).append(region)
    shares: Shares = {}
    for category, each in of_category.items():
        pictures = []
        for draw in KINDS.values():
            covered = np.max([np.asarray(draw(region)) for region in each], axis=0)
            pictures.append(_covered(Image.fromarray(covered), transform, grid))
        shares[category] = torch.stack(pictures)
    return shares


def _covered(
    picture: Image.Image, transform: Callable[[Image.Image], Tensor], grid: tuple[int, int]
) -> Float[Tensor, " patch"]:
    """How white each patch of a black and white picture is after preprocessing."""
    black, white, seen = (
        transform(each.convert("RGB"))
        for each in (
            Image.new("L", picture.size),
            Image.new("L", picture.size, 255),
            picture,
        )
    )
    # preprocessing scales colours, and bicubic filters overshoot
    share = ((seen - black) / (white - black)).mean(0).clamp(0, 1)
    patches = share.unflatten(0, (grid[0], -1)).unflatten(2, (grid[1], -1)).mean((1, 3))
    return patches.flatten()


class OverlapSums:
    """Activation inside the regions of every category, by unit, on two halves of the images.

    Args:
        n_units: number of units.
        n_categories: number of categories.
    """

    def __init__(self, n_units: int, n_categories: int):
        shape = (2, n_categories, n_units)
        self._inside = np.zeros((len(KINDS), *shape), np.float32)
        self._floor = np.zeros((len(KINDS), *shape), np.float32)
        self._total = np.zeros(shape, np.float32)
        self._images = np.zeros(shape, np.int32)

    def add(
        self,
        maps: Float[Tensor, "patch some"],
        units: Int[Tensor, " some"],
        shares: Shares,
        half: int,
    ) -> None:
        """Count one image.

        Args:
            maps: |activations| of the units that are active on it.
            units: which units these are.
            shares: of its patches.
            half: of the images, 0 or 1.
        """
        at, total = units.cpu().numpy(), maps.sum(0).cpu().numpy()
        for category, each in shares.items():
            covered = each.to(maps)
            self._inside[:, half, category, at] += (covered @ maps).cpu().numpy()
            self._floor[:, half, category, at] += covered.mean(1).cpu().numpy()[:, None] * total
            self._total[half, category, at] += total
            self._images[half, category, at] += total > 0

    def scores(self) -> dict[str, Float[np.ndarray, " unit"]]:
        """By kind: KIND_overlap, KIND_overlap_floor, and KIND_category, -1 for a unit without."""
        enough = self._images.min(0) >= MIN_SHOWN
        total = np.where(self._total > 0, self._total, np.nan)
        found: dict[str, np.ndarray] = {}
        units = np.arange(total.shape[-1])
        for kind, inside, floor in zip(KINDS, self._inside, self._floor, strict=True):
            excess = np.where(enough, (inside[0] - floor[0]) / total[0], -np.inf)
            category = excess.argmax(0)
            known = enough[category, units]
            for name, sums in (("overlap", inside), ("overlap_floor", floor)):
                value = (sums[1] / total[1])[category, units]
                found[f"{kind}_{name}"] = np.where(known, value, np.nan).astype(float)
            found[f"{kind}_category"] = np.where(known, category, -1)
        return found
