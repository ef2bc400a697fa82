"""The nearest images to some queries at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of the corpus to each query at one layer, nearest first."""

    rows: Int[np.ndarray, "query k"]
    """Number of each image in the corpus."""
    similarities: Float[np.ndarray, "query k"]
    labels: Int[np.ndarray, "query k"]

    def take(self, queries: Sequence[int]) -> Neighbours:
        """The neighbours of some of the queries."""
        places = list(queries)
        return Neighbours(self.rows[places], self.similarities[places], self.labels[places])
