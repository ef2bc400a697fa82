"""Two-way analysis of variance of many sparse quantities at once, with its floors.

Images fall into cells (a, b) of two factors. For a quantity v, with n_c images in cell c:

    SS_pair = sum_c n_c (mean_c - mean)^2        what both factors together determine
    SS_a, SS_b, SS_label                         the same for groups of one factor, or of the label
    SS_additive                                  the same for the least-squares fit f(a) + g(b)
    SS_inter = SS_pair - SS_additive             what neither factor determines by itself

The floor of every test but the interaction comes from cells permuted over images. The floor of the
interaction must keep the effects of single factors: the signs of the residuals v - f(a) - g(b) are
drawn at random for each image, which keeps the noise of every cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from vit_clt.errors import InputError


@dataclass(frozen=True)
class Sums:
    """Sums of squares of each quantity."""

    total: Float[np.ndarray, " quantity"]
    a: Float[np.ndarray, " quantity"]
    b: Float[np.ndarray, " quantity"]
    label: Float[np.ndarray, " quantity"]
    pair: Float[np.ndarray, " quantity"]
    inter: Float[np.ndarray, " quantity"]

    def ratio(self, name: str) -> Float[np.ndarray, " quantity"]:
        """eta^2 = SS / SS_total, or for "inter" SS / (SS_inter + SS_within); 0 without variance."""
        whole = self.total - self.pair + self.inter if name == "inter" else self.total
        part = getattr(self, name)
        # the sums of a quantity without variance are rounding errors
        varies = whole > 1e-9 * self.total.clip(1e-300)
        return np.divide(part, whole, out=np.zeros_like(part), where=varies)


class Cells:
    """The cell of each image, and the groups of cells that share a factor's value or the label.

    Args:
        a: value of the first factor of each image.
        b: value of the second factor of each image.
        label: label of each image; images of one cell must have one label.
        names: names of both factors, for error messages.

    Raises:
        InputError: a cell has fewer than two images, or two labels.
    """

    def __init__(
        self,
        a: Int[np.ndarray, " image"],
        b: Int[np.ndarray, " image"],
        label: Int[np.ndarray, " image"],
        names: tuple[str, str],
    ):
        self.values = np.unique(a), np.unique(b)
        ia, ib = np.searchsorted(self.values[0], a), np.searchsorted(self.values[1], b)
        self.shape = len(self.values[0]), len(self.values[1])
        self.cell = ia * self.shape[1] + ib
        n_cells = self.shape[0] * self.shape[1]
        self.counts = np.bincount(self.cell, minlength=n_cells)
        at = np.unravel_index(int(self.counts.argmin()), self.shape)
        pair = " and ".join(
            f"{name} {v[i]}" for name, v, i in zip(names, self.values, at, strict=True)
        )
        if self.counts.min() < 2:
            raise InputError(
                "data",
                f"has {self.counts.min()} images of {pair}; expected at least 2 of each pair.",
            )
        self.label = np.zeros(n_cells, label.dtype)
        self.label[self.cell] = label
        if mixed := np.flatnonzero(self.label[self.cell] != label).tolist():
            raise InputError(
                "label",
                f"of image {mixed[0]} is {label[mixed[0]]}, another of the same {names[0]} "
                f"and {names[1]} has {self.label[self.cell[mixed[0]]]}; expected one label a pair.",
            )
        n_labels = len(np.unique(self.label))
        cells = np.arange(n_cells)
        self._groups = {
            "a": self._members(cells // self.shape[1]),
            "b": self._members(cells % self.shape[1]),
            "label": self._members(np.unique(self.label, return_inverse=True)[1]),
            "pair": np.eye(n_cells),
        }
        sides = np.vstack([self._groups["a"], self._groups["b"]]).T
        weighted = sides * self.counts[:, None]
        self._additive = sides @ np.linalg.pinv(sides.T @ weighted) @ weighted.T
        self.freedom = {
            "a": self.shape[0] - 1,
            "b": self.shape[1] - 1,
            "label": n_labels - 1,
            "pair": n_cells - 1,
            "inter": (self.shape[0] - 1) * (self.shape[1] - 1),
        }

    def sums(self, values: csr_array, order: Int[np.ndarray, " image"] | None = None) -> Sums:
        """Sums of squares of every column of `values` "image quantity".

        With `order`, image i is counted in the cell of image order[i].
        """
        n = len(self.cell)
        cell = self.cell if order is None else self.cell[order]
        in_cell = self._summed(values, cell, np.ones(n))
        mean = in_cell.sum(0) / n
        # sums are taken about the mean, so that a quantity far from 0 loses no precision
        in_cell = in_cell - self.counts[:, None] * mean
        total = np.asarray(values.multiply(values).sum(0)).ravel() - n * mean**2
        between = {
            name: (np.square(groups @ in_cell) / (groups @ self.counts)[:, None]).sum(0)
            for name, groups in self._groups.items()
        }
        return Sums(total, inter=self._beyond_additive(in_cell)[0], **between)

    def wild_interaction(
        self, values: csr_array, signs: Float[np.ndarray, " image"]
    ) -> Float[np.ndarray, " quantity"]:
        """SS_inter / (SS_inter + SS_within), with the residual of each image times its sign."""
        in_cell = self._summed(values, self.cell, np.ones(len(signs)))
        fit = self._additive @ (in_cell / self.counts[:, None])
        squares = np.asarray(values.multiply(values).sum(0)).ravel()
        residual = squares - (self.counts[:, None] * fit**2).sum(0)
        signed = self._summed(values, self.cell, signs)
        signed -= np.bincount(self.cell, signs, len(self.counts))[:, None] * fit
        inter, additive = self._beyond_additive(signed)
        whole = residual - additive
        varies = whole > 1e-9 * squares.clip(1e-300)
        return np.divide(inter, whole, out=np.zeros_like(inter), where=varies)

    def _beyond_additive(self, in_cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = in_cell / self.counts[:, None]
        fit = self._additive @ means
        counts = self.counts[:, None]
        return (counts * (means - fit) ** 2).sum(0), (counts * fit**2).sum(0)

    def _summed(self, values: csr_array, cell: np.ndarray, weights: np.ndarray) -> np.ndarray:
        place = (cell, np.arange(len(cell)))
        member = csr_array((weights, place), shape=(len(self.counts), len(cell)))
        return (member @ values).toarray()

    @staticmethod
    def _members(group: np.ndarray) -> np.ndarray:
        return np.eye(group.max() + 1)[:, group]
