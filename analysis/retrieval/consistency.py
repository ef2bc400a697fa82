"""How often do retrieved images have the query's class, per layer and compared with chance and x_s?

    consistency(s) = mean over queries of the share of the K nearest images with the query's label
    chance         = mean over queries of that label's share of the corpus: sum_c p_c q_c

This says in which layers the codes tell classes apart; it does not say that the layer caused it.
The paper shows single queries (figures 4 and 5); the measure and its baseline, retrieval by the
plain x_s, are ours. Sparseness and pooling alone change which images are near; the codes of an
untrained CLT show how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.reporting.tables import csv_table
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
    """Class consistency per token kind and layer, for one set of queries."""

    name = "retrieval"
    extra_files = ("neighbours.csv",)

    frame: pd.DataFrame
    """One row per token kind and layer (`to_frame`)."""
    k: int
    """Number of nearest images that are counted."""
    n: int
    """Number of queries."""
    data: str
    """Name of the data of the queries."""
    split: str | None
    corpus: str
    n_corpus: int
    similarity: str
    backend: SearchBackend
    own_rows: bool
    """Whether queries are images of the corpus, so that each is left out of its own neighbours."""
    subject: Subject
    examples: Sequence[Retrieved]
    """The images retrieved for some of the queries, for the page and neighbours.csv."""
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """One row per token kind and layer; shares are fractions.

        Columns: the shares by `codes`, by `inputs` (the plain x_s) and, where measured, by
        `untrained` codes, and the paired differences `codes_minus_inputs` and
        `codes_minus_untrained`, all with `_low` and `_high`; `chance`; and for the corpus `l0`
        (active features per token row) and `active` (active features per pooled code).
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
        """Consistency by the codes, with chance as floor and x_s as baseline, and differences."""
        metrics = []
        for r in self.frame.to_dict("records"):
            name = f"{prefix}consistency_{r['tokens']}_{r['layer']}"
            codes = Interval.from_columns(r, "codes")
            metrics.append(codes.metric(name, "fraction", self.n, r["chance"], r["inputs"]))
            for gap in ("codes_minus_inputs", "codes_minus_untrained"):
                if gap in r:
                    label = f"{name}_{gap.removeprefix('codes_')}"
                    metrics.append(Interval.from_columns(r, gap).metric(label, "fraction", self.n))
        return metrics

    def figure(self) -> go.Figure:
        """Shares against the layer, with one panel per token kind."""
        from vit_clt.analysis.retrieval.consistency_figure import consistency_figure

        return consistency_figure(self)

    def page(self) -> str:
        """What was done, how to read it, the figure, and each example's nearest images."""
        from vit_clt.analysis.retrieval.report import retrieval_report

        return retrieval_report(self)

    def extras(self) -> Iterable[tuple[str, str]]:
        """The nearest images of the examples, where there are any."""
        if not self.examples:
            return ()
        frames = [retrieved.to_frame() for retrieved in self.examples]
        return [("neighbours.csv", csv_table(pd.concat(frames)))]


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
        index: the index of a labelled corpus.
        queries: what `index.describe` makes of labelled images.
        k: number of nearest images per query.
        control: index and queries of the same images by the codes of an `untrained` CLT, to compare
            with.
        own_rows: as in `RetrievalIndex.search`; chance then leaves out a query's own row too.
        backend: as in `RetrievalIndex.search`.
        examples: what `retrieve` returned for some of the queries, shown with the result.
        clt_name: what the CLT is called in captions.
        seed: seed of the bootstrap over queries, whose draws all layers, kinds and spaces share.
        progress: show a progress bar for each token kind and space.

    Raises:
        InputError: an image has no label, or what `RetrievalIndex.search` refuses.
    """
    labels, corpus = queries.labels, index.corpus.labels
    for name, image_labels in (("queries", labels), ("corpus", corpus)):
        if (image_labels < 0).any():
            raise InputError(
                name,
                f"have {int((image_labels < 0).sum())} images without a label; class consistency "
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
    shares: dict[tuple[str, int, str], np.ndarray] = {}
    for kind, (name, (searched, described, space)) in product(index.facts.tokens, spaces.items()):
        by_layer = searched.search(
            described,
            k,
            tokens=kind,
            space=space,
            own_rows=own_rows,
            backend=backend,
            progress=progress,
        )
        for s, neighbours in by_layer.items():
            shares[kind, s, name] = (neighbours.labels == labels[:, None]).mean(1)
    in_corpus = np.zeros(len(labels), bool) if own_rows is None else np.asarray(own_rows) >= 0
    n_classes = int(max(labels.max(), corpus.max())) + 1
    same_label = np.bincount(corpus, minlength=n_classes)[labels]
    chance = float(np.mean((same_label - in_corpus) / (len(corpus) - in_corpus)))
    columns = list(shares)
    draws = bootstrap_means(np.stack([shares[column] for column in columns], axis=1), seed)
    by_column = dict(zip(columns, draws.T, strict=True))
    rows = []
    for kind, s in product(index.facts.tokens, index.facts.layers):
        row: dict[str, Any] = {"tokens": kind, "layer": s}
        for name in spaces:
            share = Interval.of(shares[kind, s, name].mean(), by_column[kind, s, name])
            row |= share.columns(name)
        for name in list(spaces)[1:]:
            gap, drawn = (
                values[kind, s, "codes"] - values[kind, s, name] for values in (shares, by_column)
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
