"""Bootstrap intervals, paired differences, and the readings made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vit_clt.analysis.stats.readings import (
    RESAMPLES,
    Accuracy,
    Readings,
    bootstrap_means,
    gather_readings,
    interval,
)
from vit_clt.zero_shot import Outcome

N = 400


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.normal(3, 2, N), rng.random(N) < 0.8, rng.exponential(1, N)], axis=1)


def outcome(correct: list[bool], loss: list[float], top: list[int] | None = None) -> Outcome:
    return Outcome(
        torch.tensor(correct), torch.tensor(loss), torch.tensor(top or [0] * len(correct))
    )


@pytest.fixture(scope="module")
def readings() -> Readings:
    """Three versions of four batches; "weak" is wrong wherever "strong" is, and more often."""
    rng = np.random.default_rng(1)
    strong, weak = rng.random(N) < 0.9, rng.random(N) < 0.5
    right = {"strong": strong, "weak": strong & weak, "floor": np.zeros(N, dtype=bool)}
    return gather_readings(
        {
            name: [
                outcome(part.tolist(), (1.0 - part + 0.25).tolist())
                for part in np.split(r.astype(bool), 4)
            ]
            for name, r in right.items()
        },
        seed=3,
    )


def test_bootstrap_is_decided_by_its_seed(values: np.ndarray) -> None:
    assert np.array_equal(bootstrap_means(values, 5), bootstrap_means(values, 5))
    assert not np.array_equal(bootstrap_means(values, 5), bootstrap_means(values, 6))


def test_bootstrap_spread_is_the_standard_error(values: np.ndarray) -> None:
    samples = bootstrap_means(values, 0)
    assert samples.shape == (RESAMPLES, 3)
    error = values.std(0) / math.sqrt(N)
    np.testing.assert_allclose(samples.std(0), error, rtol=0.1)
    np.testing.assert_allclose(samples.mean(0), values.mean(0), atol=4 * error.max() / 30)
    for i in range(3):
        low, high = interval(samples[:, i])
        assert low == pytest.approx(values[:, i].mean() - 1.96 * error[i], abs=0.4 * error[i])
        assert high == pytest.approx(values[:, i].mean() + 1.96 * error[i], abs=0.4 * error[i])


def test_bootstrap_of_one_quantity_does_not_depend_on_the_others(values: np.ndarray) -> None:
    together, alone = bootstrap_means(values, 2), bootstrap_means(values[:, 1:2], 2)
    np.testing.assert_allclose(together[:, 1:2], alone, rtol=1e-12)


@pytest.mark.parametrize(("n", "value"), [(1, 0.5), (7, 2.0)])
def test_bootstrap_of_a_constant_is_that_constant(n: int, value: float) -> None:
    samples = bootstrap_means(np.full((n, 1), value))
    assert np.array_equal(samples, np.full((RESAMPLES, 1), value))


def test_interval_is_the_central_95_percent() -> None:
    low, high = interval(np.linspace(0, 1, 1001))
    assert (low, high) == pytest.approx((0.025, 0.975))


def test_differences_share_their_draws(values: np.ndarray) -> None:
    shifted = np.stack([values[:, 0], values[:, 0] + 0.5, values[:, 0]], axis=1)
    samples = bootstrap_means(shifted, 1)
    assert np.array_equal(samples[:, 0], samples[:, 2])
    np.testing.assert_allclose(samples[:, 1] - samples[:, 0], 0.5, rtol=1e-12)


def test_gathering_joins_batches_in_order() -> None:
    found = gather_readings(
        {
            "a": [outcome([True, False], [0.5, 1.5]), outcome([True], [4.0])],
            "b": [outcome([False, False], [1.0, 1.0]), outcome([False], [1.0])],
        },
        seed=4,
    )
    assert found.names == ["a", "b"]
    assert found.n == 3
    assert found["a"] == pytest.approx(2 / 3)
    assert found["a"].loss == pytest.approx(2.0)
    assert (found["b"], found["b"].loss) == (0.0, 1.0)
    direct = bootstrap_means(np.array([[0.5], [1.5], [4.0]]), 4)
    assert (found["a"].loss_low, found["a"].loss_high) == interval(direct[:, 0])


@pytest.mark.parametrize("measure", ["top1", "loss"])
def test_difference_of_a_version_with_itself_is_exactly_zero(
    readings: Readings, measure: str
) -> None:
    assert readings.difference("weak", "weak", measure) == (0.0, 0.0, 0.0)


def test_difference_is_narrower_paired_than_apart(readings: Readings) -> None:
    value, low, high = readings.difference("weak", "strong")
    assert value == pytest.approx(readings["weak"] - readings["strong"])
    assert low < value < high < 0
    apart = sum((readings[v].high - readings[v].low) ** 2 for v in ("weak", "strong")) ** 0.5
    assert high - low < apart
    assert readings.difference("strong", "weak") == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize("measure", ["top1", "loss"])
def test_recovered_arithmetic(readings: Readings, measure: str) -> None:
    share = float(readings["weak"]) / float(readings["strong"])
    assert readings.recovered("weak", "strong", "floor", measure) == pytest.approx(share)
    assert readings.recovered("strong", "strong", "floor", measure) == 1
    assert readings.recovered("floor", "strong", "floor", measure) == 0


@pytest.mark.parametrize("measure", ["top1", "loss"])
def test_the_interval_of_what_is_recovered_shares_its_draws(readings: Readings, measure) -> None:
    value, low, high = readings.recovered_interval("weak", "strong", "floor", measure)
    assert value == readings.recovered("weak", "strong", "floor", measure)
    weak, strong, floor = (
        readings.samples[measure][:, readings.names.index(name)]
        for name in ("weak", "strong", "floor")
    )
    shares = np.sort((weak - floor) / (strong - floor))
    assert np.mean(shares < low) == pytest.approx(0.025, abs=0.002)
    assert np.mean(shares > high) == pytest.approx(0.025, abs=0.002)
    # the whole of it is recovered in every draw
    assert readings.recovered_interval("strong", "strong", "floor", measure) == (1.0, 1.0, 1.0)


def test_draws_without_a_span_are_left_out() -> None:
    # 40 images, accuracies that agree in some draw
    full, floor = np.repeat([1.0, 0.0], [8, 32]), np.repeat([0.0, 0.0], [8, 32])
    samples = {"top1": bootstrap_means(np.stack([full, floor], 1))}
    samples["top1"][0] = 0.5
    found = Readings(["full", "floor"], samples, {"top1": np.array([0.2, 0.0])}, 40)
    assert found.recovered_interval("full", "full", "floor") == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("measure", ["top1", "loss"])
def test_recovered_is_undefined_where_full_may_equal_floor(measure: str) -> None:
    rng = np.random.default_rng(2)
    full, floor = rng.random(50) < 0.52, rng.random(50) < 0.5
    found = gather_readings(
        {
            name: [outcome(right.tolist(), (1.0 - right).tolist())]
            for name, right in (("full", full), ("floor", floor))
        }
    )
    value, low, high = found.difference("full", "floor", measure)
    assert value != 0
    assert low <= 0 <= high
    assert math.isnan(found.recovered("full", "full", "floor", measure))
    assert math.isnan(found.recovered("full", "full", "full", measure))


def test_mean_over_versions_keeps_images_paired(readings: Readings) -> None:
    value, low, high = readings.mean(["weak", "strong"], "loss")
    assert value == pytest.approx((readings["weak"].loss + readings["strong"].loss) / 2)
    both = readings.samples["loss"][:, [readings.names.index(n) for n in ("weak", "strong")]]
    assert (low, high) == pytest.approx(tuple(np.quantile(both.mean(1), [0.025, 0.975])))
    alone = readings["weak"]
    expected = (alone.loss, alone.loss_low, alone.loss_high)
    assert readings.mean(["weak"], "loss") == pytest.approx(expected)


def test_accuracy_behaves_as_its_float(readings: Readings) -> None:
    accuracy = readings["strong"]
    assert isinstance(accuracy, Accuracy)
    assert isinstance(accuracy, float)
    assert accuracy == accuracy.top1 == float(accuracy)
    assert f"{accuracy:.3f}" == f"{accuracy.top1:.3f}"
    assert accuracy - 0.1 == accuracy.top1 - 0.1
    assert accuracy.low < accuracy < accuracy.high
    assert accuracy.n == N
    assert accuracy.columns() == {
        "top1": accuracy.top1,
        "top1_low": accuracy.low,
        "top1_high": accuracy.high,
        "loss": accuracy.loss,
        "loss_low": accuracy.loss_low,
        "loss_high": accuracy.loss_high,
        "n": N,
    }


def test_any_hit_counts_every_class_an_image_shows() -> None:
    sets = [frozenset({0, 2}), frozenset({1}), frozenset({0, 1, 2})]
    batches = {
        "a": [outcome([False, True], [1.0, 1.0], [2, 1]), outcome([False], [1.0], [0])],
        "b": [outcome([False, False], [1.0, 1.0], [1, 0]), outcome([True], [1.0], [1])],
    }
    found = gather_readings(batches, 4, sets)
    assert (found["a"].any_hit, found["b"].any_hit) == pytest.approx((1, 1 / 3))
    assert (found["a"].any_hit_low, found["a"].any_hit_high) == (1, 1)
    direct = bootstrap_means(np.array([[0.0], [0.0], [1.0]]), 4)
    assert (found["b"].any_hit_low, found["b"].any_hit_high) == interval(direct[:, 0])
    assert found["b"].columns()["any_hit"] == found["b"].any_hit
    assert found.difference("a", "b", "any_hit")[0] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="shorter"):
        gather_readings(batches, 4, sets[:2])


def test_any_hit_is_undefined_without_label_sets(readings: Readings) -> None:
    assert readings["strong"].any_hit is None
    assert "any_hit" not in readings["strong"].columns()
