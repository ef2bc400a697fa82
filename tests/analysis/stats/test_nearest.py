"""Nearest rows, against a brute-force search over dense float64 matrices."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from vit_clt import InputError
from vit_clt.analysis.stats import nearest as module
from vit_clt.analysis.stats.nearest import nearest


def brute_force(queries: np.ndarray, corpus: np.ndarray, cosine: bool) -> np.ndarray:
    q, c = queries.astype(np.float64), corpus.astype(np.float64)
    scores = q @ c.T
    if cosine:
        norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(c, axis=1)
        scores = np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)
    return scores


def check(rows: np.ndarray, found: np.ndarray, scores: np.ndarray, exact: bool) -> None:
    """Each row's own similarity, the best ones there are, ties by row."""
    k = rows.shape[1]
    for mine, near, own in zip(scores, rows, found, strict=True):
        assert len(set(near.tolist())) == k
        np.testing.assert_allclose(mine[near], own, rtol=0, atol=1e-11)
        best = np.lexsort((np.arange(len(mine)), -mine))[:k]
        np.testing.assert_allclose(mine[best], own, rtol=0, atol=1e-11)
        if exact:
            np.testing.assert_array_equal(near, best)
        assert all(
            a > b or (a == b and first < second)
            for (a, first), (b, second) in zip(
                zip(own[:-1], near[:-1], strict=True),
                zip(own[1:], near[1:], strict=True),
                strict=True,
            )
        )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 23),
    n_queries=st.integers(1, 8),
    k=st.integers(1, 6),
    cosine=st.booleans(),
    sparse=st.booleans(),
    block=st.integers(1, 9),
)
def test_exact_search_is_brute_force(seed, n_rows, n_queries, k, cosine, sparse, block):
    # small whole numbers: exact products, many ties, and rows without any entry
    rng = np.random.default_rng(seed)
    corpus, queries = (
        (rng.integers(-2, 3, (n, 6)) * (rng.random((n, 6)) < 0.4)).astype(np.float32)
        for n in (n_rows, n_queries)
    )
    k = min(k, n_rows)
    form = csr_array if sparse else np.asarray
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        patch.setattr(module, "_CHUNK", 3)
        rows, found = nearest(
            form(queries), form(corpus), k, similarity="cosine" if cosine else "dot"
        )
    check(rows, found, brute_force(queries, corpus, cosine), exact=not cosine)


@pytest.fixture
def codes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pair = [rng.exponential(size=(n, 300)) * (rng.random((n, 300)) < 0.06) for n in (40, 9000)]
    return pair[0].astype(np.float32), pair[1].astype(np.float32)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_more_rows_than_a_block(codes, similarity):
    queries, corpus = codes
    rows, found = nearest(csr_array(queries), csr_array(corpus), 7, similarity=similarity)
    scores = brute_force(queries, corpus, similarity == "cosine")
    check(rows, found, scores, exact=False)
    dense_rows, dense_found = nearest(queries, corpus, 7, similarity=similarity)
    np.testing.assert_array_equal(dense_rows, rows)
    np.testing.assert_allclose(dense_found, found, rtol=0, atol=2e-12)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("form", [csr_array, np.asarray])
def test_faiss_finds_the_same(codes, similarity, form):
    pytest.importorskip("faiss")
    queries, corpus = codes
    # beyond the range of half precision, unless the corpus is scaled
    queries, corpus = form(queries), form(corpus * np.float32(1e5))
    own = np.arange(40) * 7
    expected = nearest(queries, corpus, 7, similarity=similarity, own_rows=own)
    found = nearest(queries, corpus, 7, similarity=similarity, own_rows=own, backend="faiss")
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12, atol=1e-11)


def test_faiss_is_asked_for_by_name_where_it_is_missing(codes, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"vit-clt\[faiss\]"):
        nearest(*codes, 2, backend="faiss")


@pytest.mark.parametrize("form", [csr_array, np.asarray])
def test_own_rows_are_left_out_and_copies_are_not(form):
    corpus = np.eye(4, dtype=np.float32)[[0, 1, 0, 2]]
    rows, found = nearest(form(corpus[:2]), form(corpus), 1)
    np.testing.assert_array_equal(rows, [[0], [1]])
    np.testing.assert_array_equal(found, [[1.0], [1.0]])
    own = np.array([0, -1])
    rows, found = nearest(form(corpus[:2]), form(corpus), 3, own_rows=own)
    np.testing.assert_array_equal(rows, [[2, 1, 3], [1, 0, 2]])
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 5}, "k is 5; expected 1 to 4"),
        ({"k": 0}, "k is 0; expected 1 to 4"),
        ({"k": 4, "own_rows": np.array([0, -1])}, r"1 to 3.*own row is left out"),
        ({"own_rows": np.array([0])}, "own_rows has 1 entries"),
        ({"own_rows": np.array([0, 4])}, "up to 4; expected a row below 4"),
        ({"similarity": "l2"}, 'similarity is "l2"'),
        ({"backend": "annoy"}, 'backend is "annoy"'),
        ({"queries": np.ones((2, 3), np.float32)}, "queries have 3 columns; expected 5"),
    ],
)
def test_refusals(change, message, unchecked):
    given = {"queries": np.ones((2, 5), np.float32), "corpus": np.ones((4, 5), np.float32), "k": 1}
    with pytest.raises(InputError, match=message):
        nearest(**(given | change))
