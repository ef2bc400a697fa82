"""Rank agreement against scipy, its intervals and its permutation floor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from vit_clt import InputError
from vit_clt.analysis import rank_agreement
from vit_clt.analysis.stats.ranks import PERMUTATIONS, rank_lead, row_agreement

L = 8


def triangle(seed: int, *shape: int, noise: float = 1.0) -> np.ndarray:
    """Effects below the diagonal, NaN on and above it, with ties."""
    values = np.random.default_rng(seed).normal(0, noise, (*shape, L, L)).round(1)
    return np.where(np.tri(L, k=-1, dtype=bool), values, np.nan)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_equals_scipy_target_by_target(seed: int) -> None:
    c, effect = triangle(seed), triangle(seed + 1)
    found = rank_agreement(c, effect)
    assert found.by_target["target"].tolist() == list(range(3, L))
    assert found.by_target["n_sources"].tolist() == list(range(3, L))
    for row in found.by_target.itertuples():
        pair = c[row.target, : row.target], effect[row.target, : row.target]
        if min(np.ptp(v) for v in pair) == 0:
            assert np.isnan(row.spearman)
            continue
        assert row.spearman == pytest.approx(spearmanr(*pair).statistic, abs=1e-12)
        assert row.kendall == pytest.approx(kendalltau(*pair).statistic, abs=1e-12)
    assert found.spearman.value == pytest.approx(found.by_target["spearman"].mean())
    assert found.kendall.value == pytest.approx(found.by_target["kendall"].mean())
    assert found.n_targets == found.by_target["spearman"].notna().sum()


def test_only_the_order_below_the_diagonal_counts() -> None:
    c, effect = triangle(0), triangle(1)
    expected = rank_agreement(c, effect)
    diagonal = np.where(np.tri(L, dtype=bool), 7.0, np.nan)
    found = rank_agreement(
        np.where(np.isnan(c), diagonal, c), np.where(np.isnan(effect), diagonal, np.exp(effect))
    )
    assert found.by_target.equals(expected.by_target)
    assert found.spearman.floor == expected.spearman.floor


def test_perfect_and_reversed_orders() -> None:
    c = np.arange(L * L, dtype=float).reshape(L, L)
    for sign in (1, -1):
        found = rank_agreement(c, sign * c**3)
        assert found.spearman.value == pytest.approx(sign)
        assert found.kendall.value == pytest.approx(sign)
    found = rank_agreement(c, c)
    assert found.spearman.p == 1 / (1 + PERMUTATIONS)
    assert rank_agreement(c, -c).spearman.p == 1
    assert abs(found.spearman.floor) < 0.05
    assert -0.8 < found.spearman.floor.low < 0 < found.spearman.floor.high < 0.8
    # no draws: no interval
    assert np.isnan(found.spearman.value.low)


def test_the_floor_is_what_shuffled_rows_give() -> None:
    c, effect = triangle(4), triangle(5)
    found = rank_agreement(c, effect, seed=1).kendall
    rng = np.random.default_rng(9)
    means = [
        np.mean([kendalltau(rng.permutation(c[l, :l]), effect[l, :l])[0] for l in range(3, L)])
        for _ in range(200)
    ]
    assert found.floor == pytest.approx(np.mean(means), abs=0.06)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.floor.low, found.floor.high) == pytest.approx((low, high), abs=0.12)


def test_intervals_are_those_of_the_draws() -> None:
    c, effect = triangle(6), triangle(7)
    draws = effect + triangle(8, 80, noise=0.3)
    c_draws = c + triangle(9, 80, noise=0.3)

    def by_hand(cs, effects) -> tuple[float, float]:
        means = [
            np.mean([spearmanr(a[l, :l], b[l, :l]).statistic for l in range(3, L)])
            for a, b in zip(cs, effects, strict=True)
        ]
        return tuple(np.quantile(means, [0.025, 0.975]))

    one = rank_agreement(c, effect, effect_draws=draws).spearman
    assert (one.value.low, one.value.high) == pytest.approx(by_hand([c] * 80, draws))
    both = rank_agreement(c, effect, score_draws=c_draws, effect_draws=draws).spearman
    assert (both.value.low, both.value.high) == pytest.approx(by_hand(c_draws, draws))
    assert one.value == both.value


def test_undefined_rows_are_left_out() -> None:
    c, effect = triangle(10), triangle(11)
    effect[5] = np.nan
    c[4, :4] = 0.5
    found = rank_agreement(c, effect)
    by_target = found.by_target.set_index("target")["spearman"]
    assert by_target.isna().tolist() == [l in (4, 5) for l in range(3, L)]
    assert found.n_targets == 3
    assert found.spearman.value == pytest.approx(by_target.dropna().mean())
    nothing = rank_agreement(c, np.full((L, L), np.nan))
    assert nothing.n_targets == 0
    assert np.isnan([nothing.spearman.value, nothing.spearman.p]).all()


def test_one_row_over_all_its_sources() -> None:
    rng = np.random.default_rng(3)
    c, rise = rng.normal(size=L), rng.normal(size=L)
    found = row_agreement(c, rise, effect_draws=rise + rng.normal(0, 0.1, (50, L)))
    assert found.spearman.value == pytest.approx(spearmanr(c, rise).statistic)
    assert found.kendall.value == pytest.approx(kendalltau(c, rise).statistic)
    assert found.spearman.value.low <= found.spearman.value.high
    values = {m.name: m.value for m in found.metrics("x", 9)}
    for name, agreement in (("x_spearman", found.spearman), ("x_kendall", found.kendall)):
        assert values[name] == agreement.value
        assert values[f"{name}_permuted_high"] == agreement.floor.high
        assert values[f"{name}_p"] == agreement.p
    assert len(values) == 6
    assert found.metrics("x", 9)[0].floor == found.spearman.floor


def test_the_diagonal_is_ranked_where_it_is_asked_for() -> None:
    rng = np.random.default_rng(5)
    c, effect = rng.normal(size=(2, L, L))
    found = rank_agreement(c, effect, diagonal=True)
    assert found.by_target["target"].tolist() == list(range(2, L))
    assert found.by_target["n_sources"].tolist() == list(range(3, L + 1))
    for row in found.by_target.itertuples():
        pair = c[row.target, : row.target + 1], effect[row.target, : row.target + 1]
        assert row.spearman == pytest.approx(spearmanr(*pair).statistic, abs=1e-12)


def test_a_lead_is_paired_draw_by_draw_and_target_by_target() -> None:
    rng = np.random.default_rng(6)
    c, effect = rng.normal(size=(2, L, L))
    drawn = effect + rng.normal(0, 0.3, (40, L, L))
    c[5] = 1.0  # constant: neither ranking counts there
    depth = np.tile(np.arange(float(L)), (L, 1))

    def mean(scores: np.ndarray, effects: np.ndarray) -> float:
        counted = [3, 4, 6, 7]
        return float(np.mean([spearmanr(scores[l, :l], effects[l, :l])[0] for l in counted]))

    lead = rank_lead(c, depth, effect, effect_draws=drawn)
    assert lead == pytest.approx(mean(c, effect) - mean(depth, effect), abs=1e-12)
    leads = [mean(c, each) - mean(depth, each) for each in drawn]
    assert (lead.low, lead.high) == pytest.approx(tuple(np.quantile(leads, [0.025, 0.975])))
    assert np.isnan(rank_lead(c, depth, effect).low)
    itself = rank_lead(effect, effect, effect, effect_draws=effect[None].repeat(9, 0))
    assert (itself, itself.low, itself.high) == (0, 0, 0)


def test_bad_input(unchecked: None) -> None:
    good = triangle(0)
    with pytest.raises(InputError, match=r"shape \(8, 8\) and effects \(7, 7\)"):
        rank_agreement(good, good[:7, :7])
    with pytest.raises(InputError, match=r"draws have shapes \[\(5, 7, 7\)\]"):
        rank_agreement(good, good, effect_draws=triangle(1, 5)[:, :7, :7])
    with pytest.raises(InputError, match="draws have shapes"):
        rank_agreement(good, good, score_draws=triangle(1, 4), effect_draws=triangle(1, 5))
    with pytest.raises(InputError, match="scores have 3 layers"):
        rank_agreement(good[:3, :3], good[:3, :3])
    with pytest.raises(InputError, match=r"scores have 2 layers; .* at least 3"):
        rank_lead(good[:2, :2], good[:2, :2], good[:2, :2], diagonal=True)
    with pytest.raises(InputError, match="scores have 2 sources"):
        row_agreement(np.zeros(2), np.zeros(2))
