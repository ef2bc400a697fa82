"""The test of names on held-out images, against scipy and double loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from vit_clt.analysis.naming.held_out import LEAST, HeldOut, auc_interval
from vit_clt.analysis.stats.auc import auc, ranks


def some(seed: int, n: int = 30, texts: int = 5, features: int = 6, levels: int = 7):
    """Matches with many ties, and where features fire: on 5 to n - 5 images each."""
    rng = np.random.default_rng(seed)
    match = rng.integers(levels, size=(n, texts)).astype(float)
    fired = np.zeros((features, n), bool)
    for row, count in zip(fired, rng.integers(LEAST, n - LEAST + 1, size=features), strict=True):
        row[rng.choice(n, count, replace=False)] = True
    return match, fired


@given(seed=st.integers(0, 10**6), levels=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_auc_is_mann_and_whitneys(seed: int, levels: int):
    match, fired = some(seed, levels=levels)
    found = auc(fired, ranks(match))
    for i, there in enumerate(fired):
        for w in range(match.shape[1]):
            u = mannwhitneyu(match[there, w], match[~there, w]).statistic
            assert found[i, w] == pytest.approx(u / (there.sum() * (~there).sum()), abs=1e-12)


def test_auc_is_undefined_without_both_kinds():
    match, fired = some(0)
    fired[0], fired[1] = True, False
    assert np.isnan(auc(fired, ranks(match))[:2]).all()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_interval_is_delongs(seed: int):
    match, fired = some(seed)
    a, b = match[fired[0], 0], match[~fired[0], 0]
    kernel = np.array([[(x > y) + (x == y) / 2 for y in b] for x in a])
    variance = kernel.mean(1).var(ddof=1) / len(a) + kernel.mean(0).var(ddof=1) / len(b)
    half = 1.959963984540054 * np.sqrt(variance)
    low, high = auc_interval(match[:, 0], fired[0])
    if kernel.mean() in (0, 1):
        end = 0.025 ** (1 / min(len(a), len(b)))
        assert (low, high) == ((end, 1) if kernel.mean() else (0, 1 - end))
        return
    assert low == pytest.approx(max(0, kernel.mean() - half), abs=1e-9)
    assert high == pytest.approx(min(1, kernel.mean() + half), abs=1e-9)


def test_verdicts_against_loops():
    match, fired = some(4, n=60, texts=8, features=40, levels=60)
    held_out = HeldOut(fired, ranks(match), np.random.default_rng(0))
    assert held_out.tested.tolist() == list(range(40))
    features, texts = np.arange(40), np.arange(40) % 8
    found = held_out.verdicts(features, texts)
    rates = np.log(fired.sum(1))
    for i, w in zip(features, texts, strict=True):
        others = [held_out.aucs[i, v] for v in range(8) if v != w]
        pool = sorted((j for j in range(40) if j != i), key=lambda j: abs(rates[j] - rates[i]))[:20]
        assert sorted(held_out.alike(int(i))) == sorted(pool)
        alike = [held_out.aucs[j, w] for j in pool]
        assert found.auc[i] == held_out.aucs[i, w]
        assert found.texts_mean[i] == pytest.approx(np.mean(others))
        assert found.texts_high[i] == pytest.approx(
            sorted(others)[int(np.ceil(0.95 * (len(others) - 1)))]
        )
        assert found.features_mean[i] == pytest.approx(np.mean(alike))
        assert found.features_high[i] == pytest.approx(max(alike))
        exact = mannwhitneyu(
            match[fired[i], w],
            match[~fired[i], w],
            alternative="greater",
            method="asymptotic",
            use_continuity=False,
        )
        assert found.p[i] == pytest.approx(exact.pvalue, rel=0.1, abs=0.01)
        # seven other texts, twenty other features: it must beat every one
        holds = found.auc[i] > max(*others, *alike)
        assert found.holds[i] == (holds and found.p[i] < 0.01)


def test_one_feature_alone_is_tested_against_texts():
    match, fired = some(1, features=1)
    found = HeldOut(fired, ranks(match), np.random.default_rng(0)).verdicts(
        np.array([0]), np.array([0])
    )
    assert np.isnan(found.features_high).all()
    assert not found.holds[0] or found.auc[0] > found.texts_high[0]


def test_rare_and_constant_features_are_not_tested():
    match, fired = some(2)
    fired[0] = False
    fired[0, : LEAST - 1] = True
    fired[1] = True
    fired[1, : LEAST - 1] = False
    held_out = HeldOut(fired, ranks(match), np.random.default_rng(0))
    assert held_out.tested.tolist() == [2, 3, 4, 5]


def test_an_auc_of_1_has_an_interval():
    match = np.arange(30.0)
    fired = match > 24
    assert auc_interval(match, fired) == (0.025 ** (1 / 5), 1.0)
    assert auc_interval(-match, fired) == (0.0, 1 - 0.025 ** (1 / 5))
