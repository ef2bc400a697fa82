"""Do retrieved images have the query's class? Per layer, beside chance and the plain x_s.

    consistency(s) = mean over queries of the share of the K nearest images with the query's label
    chance         = mean over queries of that label's share of the corpus: sum_c p_c q_c

Which layers tell classes apart in their codes: a reading, not a cause. The paper shows single
queries (figures 4 and 5); the measure and its baseline are ours. Sparseness and
pooling alone change which images are near: codes of an untrained CLT show how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.retrieval.descriptors import Descriptors
from vit_clt.analysis.retrieval.index import RetrievalIndex, Space
from vit_clt.analysis.retrieval.retrieved import Retrieved
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.choices import SearchBackend
from vit_clt.errors import InputError
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHOWN = {"codes": "codes", "inputs": "plain x", "untrained": "untrained CLT", "chance": "chance"}


@dataclass(frozen=True)
class ClassConsistency(Study):
    """Consistency per token kind and layer, on one set of queries."""

    name = "retrieval"
    extra_files = ("neighbours.csv",)

    frame: pd.DataFrame
    k: int
    n: int
    data: str
    """The queries'."""
    split: str | None
    corpus: str
    n_corpus: int
    similarity: str
    backend: SearchBackend
    own_rows: bool
    """Whether the queries are images of the corpus, each left out of its own neighbours."""
    subject: Subject
    examples: Sequence[Retrieved]
    """What is retrieved for some of the queries, for the page and neighbours.csv."""
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """One row per token kind and layer; shares are fractions.

        `codes`, `inputs` (the plain x_s) and, where measured, `untrained` with `_low` and `_high`,
        the paired differences `codes_minus_inputs` and `codes_minus_untrained`, `chance`, and of
        the corpus `l0` (active features a token row) and `active` (the same of the pooled code).
        """
        return self.frame.copy()

    def facts(self) -> Facts:
        """Queries and corpus, on the teacher trajectory."""
        return Facts(
            self.data,
            self.n,
            " ".join(self.frame["tokens"].unique()),
            "teacher",
            float(self.frame["l0"].mean()),
            split=self.split,
            seed=self.seed,
            more={
                "corpus": self.corpus,
                "n_corpus": self.n_corpus,
                "top": self.k,
                "similarity": self.similarity,
                "search": self.backend,
                "own_rows": self.own_rows_text(),
                "floor": "chance: the share of the corpus with the query's label",
                "baseline": "the same by the plain x_s",
            },
        )

    def own_rows_text(self) -> str:
        """Whether queries are images of the corpus, in words."""
        if self.own_rows:
            return "rows of the corpus, each left out of its own neighbours"
        return "none is taken from the corpus"

    def caption(self) -> str:
        """Queries, corpus, similarity and L0."""
        return (
            f"{self.data}, N = {self.n}, corpus: {self.corpus}, N = {self.n_corpus}; share of the "
            f"{self.k} nearest images with the query's class in %, {self.similarity}, "
            f"teacher trajectory, L0 {self.frame['l0'].mean():.1f} a token row"
        )

    def shown(self) -> pd.DataFrame:
        """Shares in percent, and active features before and after pooling."""
        from vit_clt.analysis.reporting.style import ROW_NAMES

        return pd.DataFrame(
            {
                "rows, layer": f"{ROW_NAMES[r['tokens']]}, layer {r['layer']}",
                **{title: f"{100 * r[name]:.1f}" for name, title in _SHOWN.items() if name in r},
                "active: row / pooled": f"{r['l0']:.1f} / {r['active']:.1f}",
            }
            for r in self.frame.to_dict("records")
        )

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

    def figure(self) -> go.Figure:
        """Shares against the layer, a panel a token kind."""
        from vit_clt.analysis.retrieval.consistency_figure import consistency_figure

        return consistency_figure(self)

    def page(self) -> str:
        """What was done, how to read it, the figure, and each example's nearest images."""
        from vit_clt.analysis.retrieval.report import retrieval_report

        return retrieval_report(self)

    def extras(self) -> Mapping[str, str]:
        """The nearest images of the examples, where there are any."""
        if not self.examples:
            return {}
        frames = [found.to_frame() for found in self.examples]
        return {"neighbours.csv": pd.concat(frames).to_csv(index=False)}


def class_consistency(
    index: RetrievalIndex,
    queries: Descriptors,
    *,
    k: int = 5,
    control: tuple[RetrievalIndex, Descriptors] | None = None,
    own_rows: np.ndarray | None = None,
    backend: SearchBackend = "exact",
    examples: Sequence[Retrieved] = (),
    clt_name: str = "in memory",
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
        examples: what `retrieve` found for some of the queries, to be shown beside.
        clt_name: what the CLT is called.
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
        frame=pd.DataFrame(rows),
        k=k,
        n=len(labels),
        data=queries.data,
        split=queries.split,
        corpus=index.facts.data,
        n_corpus=len(corpus),
        similarity=index.facts.similarity,
        backend=backend,
        own_rows=own_rows is not None,
        subject=Subject.of(index.vit, index.clt, clt_name),
        examples=examples,
        seed=seed,
    )
