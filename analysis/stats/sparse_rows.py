"""A sparse matrix that grows by rows, for tables of images by features."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array


class SparseRows:
    """A sparse matrix "row column" that grows downwards; 8 bytes an entry, nothing dense."""

    def __init__(self, n_columns: int):
        self._n_columns = n_columns
        self._values: list[np.ndarray] = []
        self._indices: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []

    def append(self, block: csr_array) -> None:
        """Add rows with `n_columns` columns at the bottom."""
        assert block.shape[1] == self._n_columns, block.shape
        self._values.append(block.data.astype(np.float32))
        # scipy may choose int64 for a block; int32 takes half and suffices below 2^31 columns.
        self._indices.append(block.indices.astype(np.int32))
        self._counts.append(np.diff(block.indptr))

    def matrix(self) -> csr_array:
        """The whole matrix; call it once, since it frees the blocks to keep nothing twice."""
        counts = np.concatenate([np.zeros(1, np.int64), *self._counts])
        offsets = counts.cumsum()
        values, self._values = np.concatenate(self._values), []
        indices, self._indices = np.concatenate(self._indices), []
        if offsets[-1] <= np.iinfo(np.int32).max:
            offsets = offsets.astype(np.int32)
        return csr_array((values, indices, offsets), shape=(len(offsets) - 1, self._n_columns))
