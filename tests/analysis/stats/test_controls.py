"""Random features of equal rate, random halves, and means by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_clt.analysis.stats.equal_rate import POOL, equal_rate
from vit_clt.analysis.stats.halves import halves
from vit_clt.analysis.stats.means import PositionMean
from vit_clt.data.images import TensorImages


def draws(rates: np.ndarray, feature: int, candidates: np.ndarray) -> set[int]:
    """Everything that is ever drawn, one at a time."""
    rng = np.random.default_rng(0)
    return {equal_rate(rates, feature, candidates, 1, rng)[0] for _ in range(2000)}


def test_features_are_drawn_from_those_nearest_in_the_logarithm_of_the_rate() -> None:
    rates = np.geomspace(1e-5, 0.5, 101)
    candidates = np.delete(np.arange(101), 50)
    assert draws(rates, 50, candidates) == set(range(40, 61)) - {50}
    # a rate that is a constant multiple is as near above as below
    assert draws(rates, 3, np.delete(np.arange(101), 3)) == set(range(POOL + 1)) - {3}
    assert draws((1e6 * rates).astype(int), 100, np.arange(100)) == set(range(80, 100))


def test_more_draws_than_the_pool_holds_widen_it_and_do_not_repeat() -> None:
    rates = np.arange(1, 61)
    found = equal_rate(rates, 0, np.arange(1, 60), 25, np.random.default_rng(0))
    assert sorted(found) == list(range(1, 26))
    with pytest.raises(ValueError, match="larger sample"):
        equal_rate(rates, 0, np.arange(1, 4), 4, np.random.default_rng(0))


def test_the_rarest_are_nearest_to_a_feature_that_never_fires() -> None:
    rates = np.append(np.arange(1, 61) / 60, 0)
    assert draws(rates, 60, np.arange(60)) == set(range(POOL))


def test_halves_share_no_image_and_do_not_follow_the_rows() -> None:
    data = TensorImages(torch.zeros(81, 3, 2, 2), torch.arange(81))
    first, second = ([int(i) for _, labels in half for i in labels] for half in halves(data, 0))
    assert (len(first), len(second)) == (40, 41)
    assert sorted(first + second) == list(range(81))
    assert (first, second) == (sorted(first), sorted(second))
    # classes may alternate by row, as in sorted or dealt data sets: parity must not decide
    assert 0.25 < sum(i % 2 for i in first) / len(first) < 0.75
    again, other = halves(data, 0)[0], halves(data, 1)[0]
    assert again.batch(range(40))[1].tolist() == first
    assert other.batch(range(40))[1].tolist() != first


def test_a_mean_by_position_is_that_of_all_images_whatever_the_batches() -> None:
    values = torch.randn(3, 11, 4, 5, generator=torch.Generator().manual_seed(0))
    found = PositionMean()
    for batch in values.split([4, 6, 1], dim=1):
        found.add(batch)
    torch.testing.assert_close(found.mean(), values.double().mean(1), rtol=1e-14, atol=1e-14)
