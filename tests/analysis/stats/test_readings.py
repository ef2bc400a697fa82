"""Readings of several versions on the same images, and their paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.analysis.stats.readings import Readings, gather_readings
from vit_clt.metrics import Metric
from vit_clt.readouts.base import Outcome

N = 400


def whole(found: Interval) -> tuple[float, float, float]:
    """The number and both ends."""
    return float(found), found.low, found.high


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
    assert found["a"].top1 == pytest.approx(2 / 3)
    assert found["a"].loss == pytest.approx(2.0)
    assert (found["b"].top1, found["b"].loss) == (0.0, 1.0)
    direct = bootstrap_means(np.array([[0.5], [1.5], [4.0]]), 4)
    assert whole(found["a"].loss)[1:] == whole(Interval.of(2.0, direct[:, 0]))[1:]


@pytest.mark.parametrize("measure", ["top1", "loss"])
def test_difference_of_a_version_with_itself_is_exactly_zero(
    readings: Readings, measure: str
) -> None:
    assert whole(readings.difference("weak", "weak", measure)) == (0, 0, 0)


def test_difference_is_narrower_paired_than_apart(readings: Readings) -> None:
    value, low, high = whole(readings.difference("weak", "strong"))
    assert value == pytest.approx(readings["weak"].top1 - readings["strong"].top1)
    assert low < value < high < 0
    apart = (
        sum((readings[v].top1.high - readings[v].top1.low) ** 2 for v in ("weak", "strong")) ** 0.5
    )
    assert high - low < apart
    assert whole(readings.difference("strong", "weak")) == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize("measure", ["top1", "loss"])
def test_recovered_arithmetic(readings: Readings, measure: str) -> None:
    share = readings["weak"].top1 / readings["strong"].top1
    assert readings.recovered("weak", "strong", "floor", measure) == pytest.approx(share)
    assert readings.recovered("strong", "strong", "floor", measure) == 1
    assert readings.recovered("floor", "strong", "floor", measure) == 0


@pytest.mark.parametrize("measure", ["top1", "loss"])
def test_the_interval_of_what_is_recovered_shares_its_draws(readings: Readings, measure) -> None:
    found = readings.recovered("weak", "strong", "floor", measure)
    weak, strong, floor = (
        readings.samples[measure][:, readings.names.index(name)]
        for name in ("weak", "strong", "floor")
    )
    shares = np.sort((weak - floor) / (strong - floor))
    assert np.mean(shares < found.low) == pytest.approx(0.025, abs=0.002)
    assert np.mean(shares > found.high) == pytest.approx(0.025, abs=0.002)
    # the whole of it is recovered in every draw
    assert whole(readings.recovered("strong", "strong", "floor", measure)) == (1, 1, 1)


def test_draws_without_a_span_are_left_out() -> None:
    # 40 images, accuracies that agree in some draw
    full, floor = np.repeat([1.0, 0.0], [8, 32]), np.repeat([0.0, 0.0], [8, 32])
    samples = {"top1": bootstrap_means(np.stack([full, floor], 1))}
    samples["top1"][0] = 0.5
    found = Readings(["full", "floor"], samples, {"top1": np.array([0.2, 0.0])}, 40)
    assert whole(found.recovered("full", "full", "floor")) == (1, 1, 1)


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
    span = found.difference("full", "floor", measure)
    assert span != 0
    assert span.holds_zero
    assert math.isnan(found.recovered("full", "full", "floor", measure))
    assert math.isnan(found.recovered("full", "full", "full", measure))


def test_mean_over_versions_keeps_images_paired(readings: Readings) -> None:
    value, low, high = whole(readings.mean(["weak", "strong"], "loss"))
    assert value == pytest.approx((readings["weak"].loss + readings["strong"].loss) / 2)
    both = readings.samples["loss"][:, [readings.names.index(n) for n in ("weak", "strong")]]
    assert (low, high) == pytest.approx(tuple(np.quantile(both.mean(1), [0.025, 0.975])))
    assert whole(readings.mean(["weak"], "loss")) == whole(readings["weak"].loss)


def test_a_difference_to_several_is_one_to_their_mean(readings: Readings) -> None:
    others = ["weak", "floor"]
    found = readings.difference("strong", others, "loss")
    assert found == pytest.approx(readings["strong"].loss - readings.mean(others, "loss"))
    draws = readings.draws("strong", "loss") - sum(readings.draws(n, "loss") for n in others) / 2
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_a_reading_writes_its_columns_and_metrics(readings: Readings) -> None:
    strong, weak, floor = (readings[name] for name in ("strong", "weak", "floor"))
    top1, loss = strong.top1, strong.loss
    assert top1.low < top1 < top1.high
    assert strong.columns() == {
        "top1": top1,
        "top1_low": top1.low,
        "top1_high": top1.high,
        "loss": loss,
        "loss_low": loss.low,
        "loss_high": loss.high,
        "n": N,
    }
    assert strong.metrics("kept", floor, baseline=weak) == [
        Metric("kept_top1", top1, "fraction", N, top1.low, top1.high, floor.top1, weak.top1),
        Metric("kept_loss", loss, "nats", N, loss.low, loss.high, floor.loss, weak.loss),
    ]
    assert [(m.floor, m.baseline) for m in strong.metrics("kept")] == [(None, None)] * 2


def test_any_hit_counts_every_class_an_image_shows() -> None:
    sets = [frozenset({0, 2}), frozenset({1}), frozenset({0, 1, 2})]
    batches = {
        "a": [outcome([False, True], [1.0, 1.0], [2, 1]), outcome([False], [1.0], [0])],
        "b": [outcome([False, False], [1.0, 1.0], [1, 0]), outcome([True], [1.0], [1])],
    }
    found = gather_readings(batches, 4, sets)
    assert (found["a"].any_hit, found["b"].any_hit) == pytest.approx((1, 1 / 3))
    assert whole(found["a"].any_hit) == (1, 1, 1)
    direct = bootstrap_means(np.array([[0.0], [0.0], [1.0]]), 4)
    assert whole(found["b"].any_hit)[1:] == whole(Interval.of(0.0, direct[:, 0]))[1:]
    assert found["b"].columns()["any_hit"] == found["b"].any_hit
    assert found.difference("a", "b", "any_hit") == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="shorter"):
        gather_readings(batches, 4, sets[:2])


def test_any_hit_is_undefined_without_label_sets(readings: Readings) -> None:
    assert readings["strong"].any_hit is None
    assert "any_hit" not in readings["strong"].columns()
