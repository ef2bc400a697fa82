"""The closed form of the monosemanticity score, against the sum over pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from vit_clt.analysis.measures.monosemanticity import mean_cosine, monosemanticity


def pairwise(a: np.ndarray, embeddings: np.ndarray) -> float:
    """One unit's score by the sum over pairs of Pach et al."""
    a = (a - a.min()) / (a.max() - a.min())
    cosines = cosine_similarity(embeddings)
    top = bottom = 0.0
    for i in range(len(a)):
        for j in range(i + 1, len(a)):
            top += a[i] * a[j] * cosines[i, j]
            bottom += a[i] * a[j]
    return top / bottom


@given(seed=st.integers(0, 1000), n=st.integers(3, 12), silent=st.floats(0, 0.8))
def test_it_is_the_sum_over_pairs(seed: int, n: int, silent: float):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, 3)) * (rng.random((n, 3)) > silent)
    embeddings = rng.normal(size=(n, 4)) + 0.5
    found = monosemanticity(a, embeddings)
    for unit in range(3):
        scaled = a[:, unit] - a[:, unit].min()
        if (scaled > 0).sum() < 2:
            assert np.isnan(found[unit])
        else:
            assert found[unit] == pytest.approx(pairwise(a[:, unit], embeddings), abs=1e-9)


def test_images_alike_score_one_and_opposite_ones_less():
    e = np.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    a = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert monosemanticity(a, e) == pytest.approx([1.0, -1.0])


def test_dealt_to_random_images_it_is_the_mean_cosine():
    rng = np.random.default_rng(0)
    embeddings, a = rng.normal(size=(30, 3)) + 1, rng.random(30)
    cosines = cosine_similarity(embeddings)
    assert mean_cosine(embeddings) == pytest.approx(cosines[np.triu_indices(30, 1)].mean())
    dealt = np.stack([rng.permutation(a) for _ in range(4000)], axis=1)
    drawn = monosemanticity(dealt, embeddings)
    assert abs(drawn.mean() - mean_cosine(embeddings)) < 4 * drawn.std() / 4000**0.5
