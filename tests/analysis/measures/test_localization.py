"""Moran's I against loops over pairs of patches, and its mean over shuffled patches."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from assertions import one_sentence

from vit_clt.analysis.measures.localization import MoranSums, expected_morans_i, morans_i
from vit_clt.errors import InputError


def by_loops(values: np.ndarray) -> float:
    """Moran's I of one map, by its definition."""
    places = list(product(*map(range, values.shape)))
    mean = values.mean()
    top = weight = 0.0
    for i, j in product(places, places):
        w = abs(i[0] - j[0]) + abs(i[1] - j[1]) == 1
        weight += w
        top += w * (values[i] - mean) * (values[j] - mean)
    return values.size / weight * top / ((values - mean) ** 2).sum()


def test_it_is_the_double_sum():
    maps = torch.rand(3, 5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = maps * (maps > 0.5)
    expected = [by_loops(maps[:, :, unit].numpy()) for unit in range(20)]
    np.testing.assert_allclose(morans_i(maps), expected, atol=1e-12)


def test_a_block_is_localized_and_a_chessboard_is_not():
    block, chess = np.zeros((4, 4)), np.indices((4, 4)).sum(0) % 2
    block[:2] = 1
    both = torch.from_numpy(np.stack([block, chess], axis=-1).astype(float))
    assert morans_i(both).tolist() == pytest.approx([2 / 3, -1])


def test_its_mean_over_shuffled_patches_is_the_expected_value():
    values = np.array([0.0, 0.0, 1.0, 2.0, 0.5, 0.0])
    shuffled = [by_loops(np.array(order).reshape(2, 3)) for order in permutations(values)]
    assert np.mean(shuffled) == pytest.approx(expected_morans_i(6))


def test_images_count_on_which_a_map_varies():
    maps = torch.zeros(3, 2, 2, 2)
    maps[0, 0, 0, 0] = maps[1, :, 0, 0] = 1
    maps[:, :, :, 1] = 0.1  # the same on all patches
    sums = MoranSums(3)
    for image in maps:
        sums.add(image, torch.tensor([0, 2]))
    assert sums.images.tolist() == [2, 0, 0]
    expected = np.mean([by_loops(maps[i, :, :, 0].double().numpy()) for i in (0, 1)])
    assert sums.mean()[0] == pytest.approx(expected)
    assert np.isnan(sums.mean()[1:]).all()


def test_a_single_patch_has_no_neighbours():
    with pytest.raises(InputError) as error:
        morans_i(torch.ones(1, 1, 1))
    assert "has one patch" in one_sentence(error)
