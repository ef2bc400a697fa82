"""Exact sparse search beside brute force on dense codes and faiss, and the memory of building.

    python benchmarks/bench_retrieval.py [--rows 10000] [--features 12288] [--active 523]
        [--queries 100] [--build 50000] [--rounds 3] [--out FILE]

Codes are random, with as many active features an image as pooled patch codes of a ViT-B have,
uniform over features (the sparse search's best case) and Zipf-like (some features in most images).
One thread. "exact" and "faiss" are whole calls of `nearest`, the making of their tables included;
"dense" has its table of unit rows, 4 bytes a feature, ready. Exits 1 where measured under load.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import LoadWatch, finish, interleave, ratios
from scipy.sparse import csr_array

from vit_clt.analysis.stats.nearest import nearest
from vit_clt.analysis.stats.sparse_rows import SparseRows
from vit_clt.errors import InputError

K = 5
BATCH = 64
MIB = 2**20


def random_codes(
    n_rows: int, n_features: int, active: int, seed: int, zipf: bool = False
) -> csr_array:
    """Codes with `active` distinct features an image, values exponential."""
    rng = np.random.default_rng(seed)
    # the largest of random keys, tilted towards low feature numbers where `zipf`
    tilt = np.log1p(np.arange(n_features)) if zipf else np.zeros(n_features)
    growing = SparseRows(n_features)
    for first in range(0, n_rows, BATCH):
        n = min(BATCH, n_rows - first)
        keys = rng.gumbel(size=(n, n_features)) - tilt
        indices = np.sort(np.argpartition(-keys, active, axis=1)[:, :active], axis=1)
        values = rng.exponential(size=(n, active))
        offsets = np.arange(0, n * active + 1, active)
        growing.append(csr_array((values.ravel(), indices.ravel(), offsets), shape=(n, n_features)))
    return growing.matrix()


def brute_force(queries: np.ndarray, corpus: np.ndarray, k: int) -> np.ndarray:
    """The same neighbours from unit rows, all of them dense and float32."""
    scores = queries @ corpus.T
    best = np.argpartition(-scores, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def contestants(queries: csr_array, corpus: csr_array) -> dict[str, Callable[[], np.ndarray]]:
    """Ways to find the same neighbours."""

    def unit(matrix: csr_array) -> np.ndarray:
        dense = matrix.toarray()
        return dense / np.linalg.norm(dense, axis=1, keepdims=True)

    dense_queries, dense_corpus = unit(queries), unit(corpus)
    runs: dict[str, Callable[[], np.ndarray]] = {
        "dense": lambda: brute_force(dense_queries, dense_corpus, K),
        "exact": lambda: nearest(queries, corpus, K)[0],
    }
    try:
        nearest(queries[:1], corpus[:K], K, backend="faiss")
    except InputError as error:
        print(error)
        return runs
    return runs | {"faiss": lambda: nearest(queries, corpus, K, backend="faiss")[0]}


def build(n_rows: int, n_features: int, active: int) -> dict[str, float]:
    """Gather a layer of codes from a stream of batches; sizes in MiB."""
    small = random_codes(BATCH, n_features, active, seed=0)
    before = _peak()
    growing = SparseRows(n_features)
    for first in range(0, n_rows, BATCH):
        growing.append(small[: min(BATCH, n_rows - first)])
    matrix = growing.matrix()
    size = (matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes) / MIB
    return {"rows": matrix.shape[0], "matrix": size, "peak": _peak() - before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def main() -> None:
    """Command line; the memory is that of a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=12_288)
    parser.add_argument("--active", type=int, default=523)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--build", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(build(options.build, options.features, options.active)))
        return
    torch.set_num_threads(1)
    watch = LoadWatch()
    shape = ["--features", str(options.features), "--active", str(options.active)]
    command = [sys.executable, __file__, "--child", "--build", str(options.build), *shape]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    memory = json.loads(child.stdout.splitlines()[-1])
    print(
        f"building {memory['rows']:.0f} x {options.features}: {memory['matrix']:.0f} MiB of codes, "
        f"peak {memory['peak']:.0f} MiB (dense: {options.build * options.features * 4 / MIB:.0f})"
    )
    print(f"\n{options.queries} queries, {options.rows} rows, {options.active} active features")
    print("| codes | search | CPU ms | faster than dense | low | high |\n|---|---|---|---|---|---|")
    table: list[dict[str, Any]] = []
    for zipf in (False, True):
        corpus, queries = (
            random_codes(n, options.features, options.active, seed, zipf)
            for seed, n in enumerate((options.rows, options.queries))
        )
        runs = contestants(queries, corpus)
        timings = interleave(runs, options.rounds)
        for way in runs:
            cpu = 1e3 * statistics.median(timings[way].cpu)
            ratio, low, high = ratios(timings, way, "dense")
            kind = "Zipf-like" if zipf else "uniform"
            print(f"| {kind} | {way} | {cpu:.0f} | {ratio:.2f} | {low:.2f} | {high:.2f} |")
            row = {"codes": kind, "search": way, "cpu_ms": cpu, "ratio": ratio}
            table.append(row | {"low": low, "high": high})
    finish({"rows": table, "memory": memory}, watch, options.out)


if __name__ == "__main__":
    main()
