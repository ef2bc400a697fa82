"""Measures of agreement against SciPy, scikit-learn and plain float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy, pearsonr, spearmanr
from sklearn.metrics.pairwise import cosine_similarity, linear_kernel
from sklearn.preprocessing import KernelCenterer

from vit_clt.analysis.stats.similarity import (
    kl_divergence,
    linear_cka,
    pearson,
    similarity_ranks,
    top_overlap,
)

N, CLASSES = 40, 9


def normal(*shape: int, seed: int = 0, scale: float | int = 1) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(pearson(similarity_ranks(a), similarity_ranks(b)))


def test_kl_is_scipys_entropy() -> None:
    p, q = normal(N, CLASSES, scale=5), normal(N, CLASSES, seed=1, scale=5)
    expected = entropy(softmax(p.numpy(), axis=1), softmax(q.numpy(), axis=1), axis=1)
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), expected, rtol=1e-10)
    # the teacher comes first: the divergence is not symmetric
    assert not np.allclose(kl_divergence(q, p).numpy(), expected, rtol=0.01)


def test_kl_stays_finite_where_probabilities_vanish() -> None:
    p, q = torch.tensor([[2000.0, 0.0]]).double(), torch.tensor([[0.0, 2000.0]]).double()
    assert kl_divergence(p, q).item() == pytest.approx(2000)


@pytest.mark.parametrize("k", [1, 5, CLASSES])
def test_overlap_counts_shared_classes(k: int) -> None:
    a, b = normal(N, CLASSES), normal(N, CLASSES, seed=1)
    order = [np.argsort(-x.numpy(), axis=1)[:, :k] for x in (a, b)]
    expected = [len({*s} & {*t}) / k for s, t in zip(*order, strict=True)]
    assert top_overlap(a, b, k).tolist() == pytest.approx(expected, abs=1e-15)


def test_overlap_of_all_classes_is_one() -> None:
    assert top_overlap(normal(N, 3), normal(N, 3, seed=1), 3).tolist() == [1] * N


def test_cka_is_the_alignment_of_centred_kernels() -> None:
    a = normal(N, 7) + 3
    b = a @ normal(7, 12, seed=1) + normal(N, 12, seed=2)
    k, l = (KernelCenterer().fit_transform(linear_kernel(x.numpy())) for x in (a, b))
    expected = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())
    assert linear_cka(a, b) == pytest.approx(expected, rel=1e-10)
    assert 0.1 < expected < 0.95


def test_cka_is_blind_to_rotation_scale_and_shift_but_not_to_row_norms() -> None:
    a = normal(N, 7)
    rotation = torch.linalg.qr(normal(7, 7, seed=3)).Q
    assert linear_cka(a, 2.5 * a @ rotation + 4) == pytest.approx(1, abs=1e-12)
    rows = torch.linspace(0.1, 5, N).double()[:, None]
    assert linear_cka(a, rows * a) < 0.95


@pytest.mark.parametrize("n", [N, 1])
def test_cka_of_what_does_not_vary_is_undefined(n: int) -> None:
    constant = torch.full((n, 7), 0.1).double()
    assert math.isnan(linear_cka(normal(n, 7), constant))
    assert math.isnan(linear_cka(constant, normal(n, 7)))


def test_spearman_of_similarities_is_scipys() -> None:
    a = normal(N, 7)
    b = a + normal(N, 7, seed=1)
    upper = np.triu_indices(N, 1)
    x, y = (cosine_similarity(e.numpy())[upper] for e in (a, b))
    assert spearman(a, b) == pytest.approx(spearmanr(x, y).statistic, abs=1e-10)
    assert 0.1 < spearman(a, b) < 0.95


def test_ties_share_their_rank() -> None:
    # two copies of three images: every cosine occurs four times, those of copies are all one
    a, b = normal(3, 7).repeat(2, 1), normal(3, 7, seed=1).repeat(2, 1)
    ranks = similarity_ranks(a)
    values, counts = np.unique(ranks, return_counts=True)
    assert counts.tolist() == [4, 4, 4, 3]
    assert values.tolist() == [2.5, 6.5, 10.5, 14]
    upper = np.triu_indices(6, 1)
    x, y = (cosine_similarity(e.numpy())[upper].round(9) for e in (a, b))
    assert spearman(a, b) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_collapsed_embeddings_have_no_ranks_to_correlate() -> None:
    collapsed = normal(1, 7) * torch.linspace(1, 2, N).double()[:, None]
    assert math.isnan(spearman(normal(N, 7), collapsed))


def test_pearson_is_scipys_along_the_last_axis() -> None:
    x, y = (normal(3, 18, seed=s).numpy() for s in (0, 1))
    expected = [pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(pearson(x, y), expected, rtol=1e-12)
    assert float(pearson(x[0], y[0])) == pytest.approx(expected[0])


def test_pearson_of_a_constant_is_undefined() -> None:
    # 18 times 0.9 does not sum to 18 * 0.9: a constant must not be told by its variance
    x = np.stack([np.full(18, 0.9), np.arange(18.0)])
    y = np.stack([np.arange(18.0), np.arange(18.0) ** 2])
    found = pearson(x, y)
    assert np.isnan(found).tolist() == [True, False]
    assert np.isnan(pearson(y, x)).tolist() == [True, False]
    assert math.isnan(float(pearson(np.ones(1), np.ones(1))))


def test_the_same_twice_agrees_wholly() -> None:
    logits, embeddings = normal(N, CLASSES, scale=5), normal(N, 7)
    assert kl_divergence(logits, logits).tolist() == [0] * N
    assert top_overlap(logits, logits, 5).tolist() == [1] * N
    assert linear_cka(embeddings, embeddings) == 1
    assert spearman(embeddings, embeddings) == 1
