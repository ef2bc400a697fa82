"""A number with its interval, and the bootstrap that intervals come from."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pandas as pd
import pytest

from vit_clt.analysis.stats.intervals import (
    RESAMPLES,
    Interval,
    bootstrap_means,
    intervals,
    mean_intervals,
)
from vit_clt.metrics import Metric, metrics_json

N = 400


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.normal(3, 2, N), rng.random(N) < 0.8, rng.exponential(1, N)], axis=1)


def test_bootstrap_is_decided_by_its_seed(values: np.ndarray) -> None:
    assert np.array_equal(bootstrap_means(values, 5), bootstrap_means(values, 5))
    assert not np.array_equal(bootstrap_means(values, 5), bootstrap_means(values, 6))


def test_bootstrap_spread_is_the_standard_error(values: np.ndarray) -> None:
    samples = bootstrap_means(values, 0)
    assert samples.shape == (RESAMPLES, 3)
    error = values.std(0) / math.sqrt(N)
    np.testing.assert_allclose(samples.std(0), error, rtol=0.1)
    np.testing.assert_allclose(samples.mean(0), values.mean(0), atol=4 * error.max() / 30)
    for i, found in enumerate(mean_intervals(values, 0)):
        mean = values[:, i].mean()
        assert found == pytest.approx(mean, rel=1e-12)
        assert found.low == pytest.approx(mean - 1.96 * error[i], abs=0.4 * error[i])
        assert found.high == pytest.approx(mean + 1.96 * error[i], abs=0.4 * error[i])
        alone = Interval.of(mean, samples[:, i])
        assert (alone.low, alone.high) == (found.low, found.high)


def test_bootstrap_of_one_quantity_does_not_depend_on_the_others(values: np.ndarray) -> None:
    together, alone = bootstrap_means(values, 2), bootstrap_means(values[:, 1:2], 2)
    np.testing.assert_allclose(together[:, 1:2], alone, rtol=1e-12)


@pytest.mark.parametrize(("n", "value"), [(1, 0.5), (7, 2.0)])
def test_bootstrap_of_a_constant_is_that_constant(n: int, value: float) -> None:
    samples = bootstrap_means(np.full((n, 1), value))
    assert np.array_equal(samples, np.full((RESAMPLES, 1), value))


def test_interval_is_the_central_95_percent() -> None:
    samples = np.linspace(0, 1, 1001)
    found = Interval.of(0.4, samples)
    assert (found, found.low, found.high) == pytest.approx((0.4, 0.025, 0.975))
    low, high = intervals(np.stack([samples, 2 * samples], axis=1))
    assert (*low, *high) == pytest.approx((0.025, 0.05, 0.975, 1.95))


def test_differences_share_their_draws(values: np.ndarray) -> None:
    shifted = np.stack([values[:, 0], values[:, 0] + 0.5, values[:, 0]], axis=1)
    samples = bootstrap_means(shifted, 1)
    assert np.array_equal(samples[:, 0], samples[:, 2])
    np.testing.assert_allclose(samples[:, 1] - samples[:, 0], 0.5, rtol=1e-12)


def test_an_interval_is_its_number() -> None:
    found = Interval(0.5, 0.25, 0.75)
    assert found == 0.5
    assert f"{found:.3f}" == "0.500"
    assert 100 * found == 50
    assert pd.DataFrame([{"share": found}])["share"].dtype == float
    for same in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (same, same.low, same.high) == (0.5, 0.25, 0.75)


def test_without_ends_there_is_no_interval() -> None:
    found = Interval(0.5)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.holds_zero
    assert found.text(".1f") == "0.5"


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [(-1.0, 1.0, True), (0.0, 1.0, True), (-1.0, 0.0, True), (0.1, 1.0, False)],
)
def test_holding_zero_counts_the_ends(low: float, high: float, holds: bool) -> None:
    assert Interval((low + high) / 2, low, high).holds_zero == holds


def test_text_scales_value_and_ends() -> None:
    found = Interval(0.5, 0.25, 0.75)
    assert found.text("+.2f") == "+0.50 (+0.25 to +0.75)"
    assert found.text(".0f", 100) == "50 (25 to 75)"


def test_columns_are_read_back() -> None:
    found = Interval(0.5, 0.25, 0.75)
    row = found.columns("share")
    assert row == {"share": 0.5, "share_low": 0.25, "share_high": 0.75}
    back = Interval.from_columns(row, "share")
    assert (back, back.low, back.high) == (0.5, 0.25, 0.75)


def test_a_metric_holds_plain_numbers() -> None:
    metric = Interval(0.5, 0.25, 0.75).metric("share", "fraction", 9, Interval(0.1), 0.9)
    assert metric == Metric("share", 0.5, "fraction", 9, 0.25, 0.75, 0.1, 0.9)
    assert {type(x) for x in (metric.value, metric.floor, metric.baseline)} == {float}
    bare = json.loads(metrics_json([Interval(0.5).metric("share", "fraction", 9)]))["metrics"][0]
    assert [bare[name] for name in ("low", "high", "floor", "baseline")] == [None] * 4
