"""What every layer retrieves for some query images, with the pictures of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8

from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.analysis.retrieval.descriptors import Descriptors
from vit_clt.analysis.retrieval.index import RetrievalIndex
from vit_clt.analysis.retrieval.neighbours import Neighbours
from vit_clt.analysis.stats.nearest import Similarity
from vit_clt.choices import SearchBackend, TokenKind
from vit_clt.data.images import ImageData

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Retrieved:
    """The images nearest to some queries at every layer, by one token kind."""

    neighbours: dict[int, Neighbours]
    """By layer."""
    tokens: TokenKind
    rows: list[int]
    """Of the queries, in their data."""
    labels: Int[np.ndarray, " query"]
    pictures: UInt8[np.ndarray, "query height width 3"]
    """Of the queries."""
    corpus_pictures: dict[int, UInt8[np.ndarray, "height width 3"]]
    """Of all that is retrieved, by row of the corpus."""
    class_names: list[str]
    similarity: Similarity
    l0: dict[int, float]
    """Active features a token row of the corpus, by layer."""
    data: str
    """The queries'."""
    corpus: str
    n_corpus: int

    def of(self, i: int) -> Retrieved:
        """What is retrieved for the i-th query alone."""
        return replace(
            self,
            neighbours={s: found.of([i]) for s, found in self.neighbours.items()},
            rows=[self.rows[i]],
            labels=self.labels[[i]],
            pictures=self.pictures[[i]],
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per query, layer and rank (1 is the nearest)."""
        names = dict(enumerate(self.class_names))
        table = []
        for i, (row, label) in enumerate(zip(self.rows, self.labels.tolist(), strict=True)):
            query = {"query": row, "query_label": label, "query_class": names.get(label, "")}
            for s, neighbours in self.neighbours.items():
                one = (neighbours.rows[i], neighbours.labels[i], neighbours.similarities[i])
                near = zip(*(values.tolist() for values in one), strict=True)
                for rank, (there, other, similarity) in enumerate(near, start=1):
                    table.append(
                        query
                        | {"layer": s, "rank": rank, "row": there, "label": other}
                        | {"class": names.get(other, ""), "similarity": similarity}
                        | {"tokens": self.tokens}
                    )
        return pd.DataFrame(table)

    def figure(self, *, size: int = 74) -> go.Figure:
        """The queries, each left of its nearest images by layer; a picture has `size` pixels."""
        from vit_clt.analysis.retrieval.retrieved_figure import retrieved_figure

        return retrieved_figure(self, size)


def retrieve(
    index: RetrievalIndex,
    described: Descriptors,
    queries: ImageData,
    corpus: ImageData,
    rows: Sequence[int],
    k: int = 5,
    *,
    tokens: TokenKind = "cls",
    own_rows: Int[np.ndarray, " query"] | None = None,
    backend: SearchBackend = "exact",
) -> Retrieved:
    """The k nearest images of the corpus to some of the queries, with all their pictures.

    Args:
        index: the corpus' index.
        described: `index.describe` of all queries.
        queries: their images.
        corpus: the images of the index (`index.check_corpus`).
        rows: the queries that are searched for.
        k: neighbours a query.
        tokens: the token kind searched by.
        own_rows: of all queries, as in `RetrievalIndex.search`.
        backend: as in `RetrievalIndex.search`.

    Raises:
        InputError: what `RetrievalIndex.search` refuses, a model without its preprocessing, or an
            image that cannot be read.
    """
    chosen = list(rows)
    found = index.search(
        described.take(chosen),
        k,
        tokens=tokens,
        own_rows=None if own_rows is None else own_rows[chosen],
        backend=backend,
    )
    wanted = sorted({int(row) for near in found.values() for row in near.rows.ravel()})
    pictures: dict[int, UInt8[np.ndarray, "height width 3"]] = {}
    for start in range(0, len(wanted), corpus.batch_size):
        batch = wanted[start : start + corpus.batch_size]
        shown = pixels(index.vit, corpus.batch(batch)[0])
        pictures |= dict(zip(batch, shown, strict=True))
    facts = index.facts
    return Retrieved(
        neighbours=found,
        tokens=tokens,
        rows=chosen,
        labels=described.labels[chosen],
        pictures=pixels(index.vit, queries.batch(chosen)[0]),
        corpus_pictures=pictures,
        class_names=facts.class_names,
        similarity=facts.similarity,
        l0={s: index.corpus.l0[tokens][s] for s in found},
        data=queries.name,
        corpus=facts.data,
        n_corpus=facts.n_images,
    )
