"""Do retrieved images have the query's class? Per layer, beside chance and the plain x_s.

    consistency(s) = mean over queries of the share of the K nearest images with the query's label
    chance         = mean over queries of that label's share of the corpus: sum_c p_c q_c

Which layers tell classes apart in their codes: a reading, not a cause. The paper shows single
queries (figures 4 and 5); the measure and its baseline are ours. Sparseness and
pooling alone change which images are near: codes of an untrained CLT show how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from vit_clt.analysis.retrieval.descriptors import Descriptors
from vit_clt.analysis.retrieval.index import RetrievalIndex, Space
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.choices import SearchBackend
from vit_clt.errors import InputError
from vit_clt.metrics import Metric


@dataclass(frozen=True)
class ClassConsistency:
    """Consistency per token kind and layer, on one set of queries."""

    frame: pd.DataFrame
    k: int
    n: int
    data: str
    """The queries'."""
    corpus: str
    n_corpus: int
    similarity: str
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """One row per token kind and layer; shares are fractions.

        `codes`, `inputs` (the plain x_s) and, where measured, `untrained` with `_low` and `_high`,
        the paired differences `codes_minus_inputs` and `codes_minus_untrained`, `chance`, and of
        the corpus `l0` (active features a token row) and `active` (the same of the pooled code).
        """
        return self.frame.copy()

    def metrics(self, prefix: str = "") -> list[Metric]:
        """Of the codes, above chance as floor and beside the inputs as baseline; and the gaps."""
        found = []
        for r in self.frame.to_dict("records"):
            name = f"{prefix}consistency_{r['tokens']}_{r['layer']}"
            codes = Interval.from_columns(r, "codes")
            found.append(codes.metric(name, "fraction", self.n, r["chance"], r["inputs"]))
            for gap in ("codes_minus_inputs", "codes_minus_untrained"):
                if gap in r:
                    label = f"{name}_{gap.removeprefix('codes_')}"
                    found.append(Interval.from_columns(r, gap).metric(label, "fraction", self.n))
        return found


def class_consistency(
    index: RetrievalIndex,
    queries: Descriptors,
    *,
    k: int = 5,
    control: tuple[RetrievalIndex, Descriptors] | None = None,
    own_rows: np.ndarray | None = None,
    backend: SearchBackend = "exact",
    seed: int = 0,
    progress: bool = False,
) -> ClassConsistency:
    """The share of each query's k nearest images that have its label, by token kind and layer.

    Args:
        index: of a labelled corpus.
        queries: `index.describe` of labelled images.
        k: neighbours a query.
        control: index and queries of the same images by `untrained` codes, to be shown beside.
        own_rows: as in `RetrievalIndex.search`; a query's own row then counts for chance neither.
        backend: as in `RetrievalIndex.search`.
        seed: of the bootstrap over queries, whose draws all layers, kinds and spaces share.
        progress: show a progress bar a token kind and space.

    Raises:
        InputError: images without a label, or what `RetrievalIndex.search` refuses.
    """
    labels, corpus = queries.labels, index.corpus.labels
    for name, found in (("queries", labels), ("corpus", corpus)):
        if (found < 0).any():
            raise InputError(
                name,
                f"have {int((found < 0).sum())} images without a label; class consistency "
                "needs a label on each.",
            )
    spaces: dict[str, tuple[RetrievalIndex, Descriptors, Space]] = {
        "codes": (index, queries, "codes"),
        "inputs": (index, queries, "inputs"),
    }
    if control is not None:
        other_corpus, other_queries = control[0].corpus.labels, control[1].labels
        if not (np.array_equal(other_corpus, corpus) and np.array_equal(other_queries, labels)):
            raise InputError(
                "control",
                f"has {len(other_queries)} queries and {len(other_corpus)} images of other "
                "labels; expected the same images in the same order.",
            )
        spaces["untrained"] = (*control, "codes")
    against = list(spaces)
    shares: dict[tuple[str, int, str], np.ndarray] = {}
    for kind, (name, (where, asked, space)) in product(index.facts.tokens, spaces.items()):
        by_layer = where.search(
            asked,
            k,
            tokens=kind,
            space=space,
            own_rows=own_rows,
            backend=backend,
            progress=progress,
        )
        for s, neighbours in by_layer.items():
            shares[kind, s, name] = (neighbours.labels == labels[:, None]).mean(1)
    own = np.zeros(len(labels), bool) if own_rows is None else np.asarray(own_rows) >= 0
    n_classes = int(max(labels.max(), corpus.max())) + 1
    of_label = np.bincount(corpus, minlength=n_classes)[labels]
    chance = float(np.mean((of_label - own) / (len(corpus) - own)))
    columns = list(shares)
    draws = bootstrap_means(np.stack([shares[column] for column in columns], axis=1), seed)
    by_column = dict(zip(columns, draws.T, strict=True))
    rows = []
    for kind, s in product(index.facts.tokens, index.facts.layers):
        row: dict[str, Any] = {"tokens": kind, "layer": s}
        for name in against:
            share = Interval.of(shares[kind, s, name].mean(), by_column[kind, s, name])
            row |= share.columns(name)
        for name in against[1:]:
            gap, drawn = (
                each[kind, s, "codes"] - each[kind, s, name] for each in (shares, by_column)
            )
            row |= Interval.of(gap.mean(), drawn).columns(f"codes_minus_{name}")
        row |= {
            "chance": chance,
            "k": k,
            "n": len(labels),
            "l0": index.corpus.l0[kind][s],
            "active": index.corpus.codes[kind][s].nnz / len(corpus),
        }
        rows.append(row)
    return ClassConsistency(
        pd.DataFrame(rows),
        k,
        len(labels),
        queries.data,
        index.facts.data,
        len(corpus),
        index.facts.similarity,
        seed,
    )
