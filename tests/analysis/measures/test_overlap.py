"""Overlap with boxes and outlines, against loops over pixels, images and patches."""

import numpy as np
import pytest
import torch
from PIL import Image

from vit_clt.analysis.measures.overlap import (
    CoveredPatches,
    OverlapSums,
    patch_shares,
)
from vit_clt.data.coco_regions import Region
from vit_clt.data.images import ImageSubset, TensorImages


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Preprocessing without a resize: colours scaled by another factor in each channel."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return (values - 0.4) / torch.tensor([0.2, 0.3, 0.5])[:, None, None]


def test_shares_are_those_of_the_pixels():
    box = Region(2, (8, 12), (3.0, 2.0, 5.0, 4.0), ())
    other = Region(2, (8, 12), (0.0, 0.0, 2.0, 2.0), ())
    outline = Region(
        0, (8, 12), (0.0, 0.0, 12.0, 8.0), ((0.0, 0.0, 11.0, 0.0, 11.0, 3.0, 0.0, 3.0),)
    )
    shares = patch_shares([box, other, outline], to_tensor, (2, 3))
    pixels = np.zeros((8, 12))
    pixels[2:6, 3:8] = 1
    pixels[0:2, 0:2] = 1
    expected = [
        pixels[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for i in (0, 1) for j in range(3)
    ]
    np.testing.assert_allclose(shares[2][0], expected, atol=1e-6)
    # without an outline the box stands for it
    np.testing.assert_allclose(shares[2][1], expected, atol=1e-6)
    np.testing.assert_allclose(shares[0][0], 1, atol=1e-6)
    np.testing.assert_allclose(shares[0][1], [1, 1, 1, 0, 0, 0], atol=1e-6)


def test_a_crop_moves_regions_as_it_moves_pixels():
    def cropped(image: Image.Image) -> torch.Tensor:
        return to_tensor(image.crop((4, 0, 12, 8)))

    shares = patch_shares([Region(1, (8, 12), (4.0, 0.0, 4.0, 8.0), ())], cropped, (1, 2))
    np.testing.assert_allclose(shares[1], [[1, 0], [1, 0]], atol=1e-6)


def test_sums_are_the_definition_on_the_other_half():
    rng = np.random.default_rng(0)
    n, patches, units, categories = 60, 6, 4, 3
    maps = rng.random((n, patches, units)) * (rng.random((n, patches, units)) < 0.5)
    shown = rng.random((n, categories)) < 0.6
    covered = rng.random((n, categories, 2, patches))
    halves = rng.integers(0, 2, n)
    maps[:, :, 1] += 3 * covered[:, 2, 1]  # unit 1 follows the outlines of category 2
    sums = OverlapSums(units, categories)
    for i in range(n):
        [active] = maps[i].any(0).nonzero()
        shares = {c: torch.from_numpy(covered[i, c]) for c in range(categories) if shown[i, c]}
        args = (torch.from_numpy(maps[i][:, active]), torch.from_numpy(active))
        sums.add(*args, shares, int(halves[i]))
    found = sums.scores()

    def of(kind: int, half: int, c: int, unit: int) -> tuple[float, float]:
        inside = floor = total = 0.0
        for i in range(n):
            if halves[i] == half and shown[i, c]:
                v, s = maps[i, :, unit], covered[i, c, kind]
                inside += (v * s).sum()
                floor += s.mean() * v.sum()
                total += v.sum()
        return inside / total, floor / total

    for kind, name in enumerate(("box", "mask")):
        for unit in range(units):
            excess = [np.subtract(*of(kind, 0, c, unit)) for c in range(categories)]
            category = int(np.argmax(excess))
            assert found[f"{name}_category"][unit] == category
            value, floor = of(kind, 1, category, unit)
            assert found[f"{name}_overlap"][unit] == pytest.approx(value, rel=1e-5)
            assert found[f"{name}_overlap_floor"][unit] == pytest.approx(floor, rel=1e-5)
    assert found["mask_category"][1] == 2
    assert found["mask_overlap"][1] > found["mask_overlap_floor"][1] + 0.1


def test_a_unit_on_too_few_images_has_none():
    sums = OverlapSums(2, 1)
    share = {0: torch.full((2, 3), 0.5)}
    for i in range(9):
        sums.add(torch.ones(3, 1), torch.tensor([0]), share, i % 2)
    assert np.isnan(sums.scores()["box_overlap"]).all()
    sums.add(torch.ones(3, 1), torch.tensor([0]), share, 1)
    found = sums.scores()
    assert found["box_overlap"].tolist()[0] == pytest.approx(0.5)
    assert found["box_category"].tolist() == [0, -1]


def test_data_without_regions_have_none():
    data = TensorImages(torch.zeros(4, 3, 8, 8))
    assert CoveredPatches.of_images(data, (2, 2), 0) is None


def test_some_images_keep_their_own_regions():
    data = TensorImages(torch.zeros(4, 3, 8, 8))
    data.transform = to_tensor
    data.regions = lambda: [[Region(i, (8, 8), (0.0, 0.0, 8.0, 8.0), ())] for i in range(4)]
    covered = CoveredPatches.of_images(ImageSubset(data, [2, 0]), (2, 2), 0)
    assert [list(each) for each in covered.shares] == [[2], [0]]
    assert sorted(covered.halves) == [0, 1]
