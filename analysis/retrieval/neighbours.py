"""The nearest images to some queries at one layer, and as a table over layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of the corpus to each query at one layer, nearest first."""

    rows: Int[np.ndarray, "query k"]
    """Of the corpus."""
    similarities: Float[np.ndarray, "query k"]
    labels: Int[np.ndarray, "query k"]

    def of(self, queries: Sequence[int]) -> Neighbours:
        """Those of some of the queries."""
        chosen = list(queries)
        return Neighbours(self.rows[chosen], self.similarities[chosen], self.labels[chosen])


def neighbour_frame(
    found: dict[int, Neighbours],
    rows: Sequence[int],
    labels: Int[np.ndarray, " query"],
    class_names: Sequence[str],
) -> pd.DataFrame:
    """One row per query, layer and rank (1 is the nearest).

    Args:
        found: by layer.
        rows, labels: the queries' rows in their data, and their labels.
        class_names: of queries and corpus.
    """
    names = dict(enumerate(class_names))
    table = []
    for i, (row, label) in enumerate(zip(rows, labels.tolist(), strict=True)):
        query = {"query": row, "query_label": label, "query_class": names.get(label, "")}
        for s, neighbours in found.items():
            one = (neighbours.rows[i], neighbours.labels[i], neighbours.similarities[i])
            near = zip(*(values.tolist() for values in one), strict=True)
            for rank, (there, other, similarity) in enumerate(near, start=1):
                table.append(
                    query
                    | {"layer": s, "rank": rank, "row": there, "label": other}
                    | {"class": names.get(other, ""), "similarity": similarity}
                )
    return pd.DataFrame(table)
