"""The images that every layer retrieves for some queries, with the pictures of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8

from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.retrieval.descriptors import Descriptors
from vit_clt.analysis.retrieval.index import RetrievalIndex
from vit_clt.analysis.retrieval.neighbours import Neighbours
from vit_clt.analysis.stats.nearest import Similarity
from vit_clt.analysis.stats.query import check_query
from vit_clt.choices import SearchBackend, TokenKind
from vit_clt.data.images import ImageData
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Retrieved(Study):
    """The images nearest to some queries at every layer, by one token kind."""

    name = "retrieved"

    neighbours: dict[int, Neighbours]
    """The nearest images by layer."""
    tokens: TokenKind
    query: list[int]
    """Number of each query in its data."""
    labels: Int[np.ndarray, " query"]
    """Label of each query; -1 where unknown."""
    pictures: UInt8[np.ndarray, "query height width 3"]
    """Pictures of the queries."""
    corpus_pictures: dict[int, UInt8[np.ndarray, "height width 3"]]
    """Pictures of all retrieved images, by their number in the corpus."""
    class_names: list[str]
    similarity: Similarity
    l0: dict[int, float]
    """Active features per token row of the corpus, by layer."""
    data: str
    """Name of the data of the queries."""
    split: str | None
    corpus: str
    n_corpus: int

    @property
    def k(self) -> int:
        """Number of images retrieved for each query at a layer."""
        return int(next(iter(self.neighbours.values())).rows.shape[1])

    def take(self, i: int) -> Retrieved:
        """The images retrieved for the i-th query alone."""
        return replace(
            self,
            neighbours={s: near.take([i]) for s, near in self.neighbours.items()},
            query=[self.query[i]],
            labels=self.labels[[i]],
            pictures=self.pictures[[i]],
        )

    def facts(self) -> Facts:
        """Queries and corpus, on the teacher trajectory."""
        return Facts(
            self.data,
            len(self.query),
            self.tokens,
            "teacher",
            sum(self.l0.values()) / len(self.l0),
            split=self.split,
            more={
                "query": self.query,
                "corpus": self.corpus,
                "n_corpus": self.n_corpus,
                "top": self.k,
                "similarity": self.similarity,
            },
        )

    def caption(self) -> str:
        """Queries, corpus, similarity and L0."""
        return (
            f"{self.data}, N = {len(self.query)} queries, corpus: {self.corpus}, N = "
            f"{self.n_corpus}; the {self.k} nearest images by layer, {self.similarity} of codes on "
            f"{self.tokens} rows, teacher trajectory, L0 {self.facts().l0:.1f} a token row"
        )

    def to_frame(self) -> pd.DataFrame:
        """One table row per query, layer and rank (1 is the nearest)."""
        names = dict(enumerate(self.class_names))
        table = []
        for i, (row, label) in enumerate(zip(self.query, self.labels.tolist(), strict=True)):
            query = {"query": row, "query_label": label, "query_class": names.get(label, "")}
            for s, neighbours in self.neighbours.items():
                columns = (neighbours.rows[i], neighbours.labels[i], neighbours.similarities[i])
                near = zip(*(values.tolist() for values in columns), strict=True)
                for rank, (corpus_row, near_label, similarity) in enumerate(near, start=1):
                    table.append(
                        query
                        | {"layer": s, "rank": rank, "row": corpus_row, "label": near_label}
                        | {"class": names.get(near_label, ""), "similarity": similarity}
                        | {"tokens": self.tokens}
                    )
        return pd.DataFrame(table)

    def shown(self) -> pd.DataFrame:
        """One row per query and layer: how many images have its class, and the images by number."""
        names = dict(enumerate(self.class_names))
        return pd.DataFrame(
            {
                "query": image,
                "class": names.get(label, "unknown"),
                "layer": s,
                "of its class": f"{hits} of {self.k}" if label >= 0 else "unknown",
                "nearest images (similarity)": ", ".join(
                    f"{row} ({similarity:.3f})"
                    for row, similarity in zip(near.rows[i], near.similarities[i], strict=True)
                ),
            }
            for i, (image, label) in enumerate(zip(self.query, self.labels.tolist(), strict=True))
            for s, near in self.neighbours.items()
            for hits in [int((near.labels[i] == label).sum())]
        )

    def metrics(self) -> list[Metric]:
        """By layer, the share of images retrieved for labelled queries that have their class."""
        known = self.labels >= 0
        return [
            Metric(f"same_class_{self.tokens}_{s}", float(same.mean()), "fraction", len(same))
            for s, near in self.neighbours.items()
            if known.any()
            for same in [(near.labels == self.labels[:, None])[known].mean(1)]
        ]

    def figure(self, *, size: int = 74) -> go.Figure:
        """Each query with its nearest images to the right, by layer; pictures are `size` pixels."""
        from vit_clt.analysis.retrieval.retrieved_figure import retrieved_figure

        return retrieved_figure(self, size)


def retrieve(
    index: RetrievalIndex,
    described: Descriptors,
    queries: ImageData,
    corpus: ImageData,
    query: Sequence[int],
    k: int = 5,
    *,
    tokens: TokenKind = "cls",
    own_rows: Int[np.ndarray, " query"] | None = None,
    backend: SearchBackend = "exact",
) -> Retrieved:
    """The k nearest images of the corpus to some of the queries, with all their pictures.

    Args:
        index: the index of the corpus.
        described: what `index.describe` makes of all queries.
        queries: the images of all queries.
        corpus: the images of the index (`index.check_corpus`).
        query: numbers of the queries that are searched for.
        k: number of nearest images per query.
        tokens: the token kind whose codes are compared.
        own_rows: for all queries, as in `RetrievalIndex.search`.
        backend: as in `RetrievalIndex.search`.

    Raises:
        InputError: what `RetrievalIndex.search` and `check_query` refuse, the model has no
            preprocessing, or an image cannot be read.
    """
    check_query(query, queries)
    query = list(query)
    neighbours = index.search(
        described.take(query),
        k,
        tokens=tokens,
        own_rows=None if own_rows is None else own_rows[query],
        backend=backend,
    )
    shown = sorted({int(row) for near in neighbours.values() for row in near.rows.ravel()})
    pictures: dict[int, UInt8[np.ndarray, "height width 3"]] = {}
    for start in range(0, len(shown), corpus.batch_size):
        batch = shown[start : start + corpus.batch_size]
        batch_pictures = pixels(index.vit, corpus.batch(batch)[0])
        pictures |= dict(zip(batch, batch_pictures, strict=True))
    facts = index.facts
    return Retrieved(
        neighbours=neighbours,
        tokens=tokens,
        query=query,
        labels=described.labels[query],
        pictures=pixels(index.vit, queries.batch(query)[0]),
        corpus_pictures=pictures,
        class_names=facts.class_names,
        similarity=facts.similarity,
        l0={s: index.corpus.l0[tokens][s] for s in neighbours},
        data=queries.name,
        split=queries.split,
        corpus=facts.data,
        n_corpus=facts.n_images,
    )
