"""The nearest rows of one matrix to the rows of another, sparse or dense, by cosine or dot product.

    cosine  <q, c> / (|q| |c|);  0 where either is all zero
    dot     <q, c>

Similarities are computed in float64 and rounded to 12 decimals; equal ones go to the lower row.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from vit_clt.choices import SearchBackend, check_choice
from vit_clt.errors import InputError

Similarity = Literal["cosine", "dot"]
Matrix = TypeVar("Matrix", csr_array, np.ndarray)
DECIMALS = 12
# A block of the corpus is compared with a chunk of the queries: 34 MB of float64 similarities.
_BLOCK, _CHUNK = 8192, 512
# faiss sorts rounded similarities, so it proposes this many rows more than are asked for.
_SPARE = 32


def nearest(
    queries: Matrix,
    corpus: Matrix,
    k: int,
    *,
    similarity: Similarity = "cosine",
    own_rows: Int[np.ndarray, " query"] | None = None,
    backend: SearchBackend = "exact",
) -> tuple[Int[np.ndarray, "query k"], Float[np.ndarray, "query k"]]:
    """The k rows of the corpus most similar to each query, nearest first, and their similarities.

    "exact" compares every row. "faiss" lets a flat index of half-precision vectors propose about
    k + 32 rows and then computes their similarities exactly. Its result can differ only in rows
    whose similarity is within rounding of the k-th, or where more than 32 rows tie.

    Args:
        queries: CSR or dense, "query column".
        corpus: CSR or dense as the queries are, "row column".
        k: number of neighbours of a query.
        similarity: "cosine" or "dot".
        own_rows: for each query its own row in the corpus, which is left out of its neighbours,
            or -1 where it has none. Other rows equal to the query stay.
        backend: "exact" or "faiss".

    Raises:
        InputError: a similarity or back end is unknown, queries and corpus differ in width,
            `own_rows` do not fit, k is above the number of rows, or faiss is not installed.
    """
    check_choice("similarity", similarity, get_args(Similarity))
    check_choice("backend", backend, get_args(SearchBackend))
    (n_queries, width), (n_rows, expected) = queries.shape, corpus.shape
    if width != expected:
        raise InputError(
            "queries", f"have {width} columns; expected {expected}, as the corpus has."
        )
    own_row = np.full(n_queries, -1) if own_rows is None else own_rows
    if (
        len(own_row) != n_queries
        or own_row.min(initial=-1) < -1
        or own_row.max(initial=-1) >= n_rows
    ):
        raise InputError(
            "own_rows",
            f"has {len(own_row)} entries up to {own_row.max(initial=-1)}; expected a row below "
            f"{n_rows}, or -1, for each of {n_queries} queries.",
        )
    available = n_rows - bool((own_row >= 0).any())
    if not 1 <= k <= available:
        left_out = "" if available == n_rows else " (a query's own row is left out)"
        raise InputError(
            "k", f"is {k}; expected 1 to {available}, the rows of the corpus{left_out}."
        )
    find = _exact if backend == "exact" else _with_faiss
    scaled = _in_float64(queries, similarity)
    chunks = [slice(start, start + _CHUNK) for start in range(0, n_queries, _CHUNK)]
    return find(scaled, corpus, k, similarity, own_row, chunks)


Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Query, row and similarity of each candidate, in three flat arrays."""


def _exact(
    queries: Matrix,
    corpus: Matrix,
    k: int,
    similarity: Similarity,
    own_row: np.ndarray,
    chunks: list[slice],
) -> tuple[np.ndarray, np.ndarray]:
    nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    best: list[Candidates] = [nothing for _ in chunks]
    for first in range(0, corpus.shape[0], _BLOCK):
        # Transposed to CSR, so that a query visits only the rows that share a column with it.
        block = _in_float64(corpus[first : first + _BLOCK], similarity).T
        if not isinstance(block, np.ndarray):
            block = block.tocsr()
        for i, chunk in enumerate(chunks):
            product = queries[chunk] @ block
            scores = _dense(product).round(DECIMALS)
            column = own_row[chunk] - first
            inside = (column >= 0) & (column < scores.shape[1])
            scores[inside.nonzero()[0], column[inside]] = -np.inf
            kept = min(k, scores.shape[1])
            least = np.partition(scores, -kept, axis=1)[:, -kept]
            query, row = (scores >= least[:, None]).nonzero()
            candidates = (query, row + first, scores[query, row])
            merged = tuple(np.concatenate(pair) for pair in zip(best[i], candidates, strict=True))
            best[i] = _first(k, *merged)
    rows = np.concatenate([row for _, row, _ in best]).reshape(-1, k)
    return rows, np.concatenate([score for _, _, score in best]).reshape(-1, k)


def _with_faiss(
    queries: Matrix,
    corpus: Matrix,
    k: int,
    similarity: Similarity,
    own_row: np.ndarray,
    chunks: list[slice],
) -> tuple[np.ndarray, np.ndarray]:
    faiss = check_faiss()
    n_rows, width = corpus.shape
    quantiser = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexScalarQuantizer(width, quantiser, faiss.METRIC_INNER_PRODUCT)
    # Scaling the corpus keeps the order of dot products; half precision ends at 65,504.
    largest = 1.0 if similarity == "cosine" else max(float(abs(corpus).max()), 1e-30)
    for first in range(0, n_rows, _BLOCK):
        block = _in_float64(corpus[first : first + _BLOCK], similarity) / largest
        index.add(_dense(block).astype(np.float32))
    proposed = min(n_rows, k + 1 + _SPARE)
    rows, similarities = [], []
    for chunk in chunks:
        searched = queries[chunk]
        _, candidates = index.search(_dense(searched).astype(np.float32), proposed)
        scores = np.empty(candidates.shape)
        for i in range(len(candidates)):
            vectors = _in_float64(corpus[candidates[i]], similarity)
            product = vectors @ searched[[i]].T
            scores[i] = _dense(product)[:, 0]
        scores = scores.round(DECIMALS)
        scores[candidates == own_row[chunk][:, None]] = -np.inf
        query = np.repeat(np.arange(len(candidates)), proposed)
        _, row, score = _first(k, query, candidates.ravel(), scores.ravel())
        rows.append(row.reshape(-1, k))
        similarities.append(score.reshape(-1, k))
    return np.concatenate(rows), np.concatenate(similarities)


def _first(k: int, query: np.ndarray, row: np.ndarray, score: np.ndarray) -> Candidates:
    """The k highest-scoring candidates of each query, best first; all of them where fewer."""
    order = np.lexsort((row, -score, query))
    counts = np.bincount(query)
    ranks = np.arange(len(query)) - np.repeat(counts.cumsum() - counts, counts)
    kept = order[ranks < k]
    return query[kept], row[kept], score[kept]


def _in_float64(matrix: Matrix, similarity: Similarity) -> Matrix:
    from sklearn.preprocessing import normalize  # takes a second to import

    doubled = matrix.astype(np.float64)
    return normalize(doubled, copy=False) if similarity == "cosine" else doubled


def _dense(matrix: Matrix) -> np.ndarray:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def check_faiss() -> ModuleType:
    """Import and return the optional package faiss.

    Raises:
        InputError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "backend",
            "is \"faiss\", which is not installed; expected pip install 'vit-clt[faiss]'.",
        ) from error
    return faiss
