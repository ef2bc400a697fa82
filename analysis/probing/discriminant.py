"""A linear probe in closed form: the discriminant of values that share one shrunk covariance.

    score_v(x) = (m_v - m)' S^-1 (x - m) - (m_v - m)' S^-1 (m_v - m) / 2 + ln p_v
    S = (1 - shrinkage) W + shrinkage * (mean variance) * I

m_v are the means of the training rows with value v, W their covariance within values, p_v the share
of the value; softmax of the scores is p(v | x). Linear, deterministic, and one covariance of the
rows serves every factor and every permutation of it, which is why this is no library's: one that
starts from the rows each time takes hours at ViT-B width. The same scores as scikit-learn's
`LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...)` but for what it shrinks towards.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

SHRINKAGES = (0.5, 0.1, 1e-2, 1e-3, 1e-4)
HELD_OUT_EVERY = 5
"""One training row in so many, drawn at random, chooses the shrinkage."""
# columns that vary less than this, relative to their size, vary by rounding alone
_CONSTANT = 1e-6


class Discriminant:
    """Training rows, standardised, and what all probes of them share.

    Args:
        rows: what to read from, of the training images. Columns that do not vary are left out.
        seed: of the rows that choose the shrinkage.
    """

    def __init__(self, rows: Float[np.ndarray, "image feature"], seed: int = 0):
        wide = rows.astype(np.float64)
        self._mean, deviation = wide.mean(0), wide.std(0)
        self._varies = deviation > _CONSTANT * np.sqrt(np.square(wide).mean(0))
        self._deviation = deviation[self._varies]
        x = self._standardised(wide)
        order = np.random.default_rng(seed).permutation(len(x))
        self._held, self._fitted = np.split(order, [-(-len(x) // HELD_OUT_EVERY)])
        self._all = _Part(x)
        self._part = _Part(x[self._fitted])
        self._held_rows = x[self._held]

    def probe(
        self,
        values: Int[np.ndarray, " image"],
        n_values: int,
        rows: Float[np.ndarray, "test feature"],
    ) -> tuple[Float[np.ndarray, "test value"], float]:
        """ln p(value | row) of other rows, and the shrinkage that was chosen.

        The shrinkage with the lowest cross-entropy on the held-out fifth of the training rows is
        taken (of equals the largest), and the probe is fitted again on all of them.

        Args:
            values: of the training images, 0 to n_values - 1, each of them there.
            n_values: how many there are.
            rows: what to read.
        """
        losses = []
        for shrinkage in SHRINKAGES:
            guess = self._part.fit(values[self._fitted], n_values, shrinkage)(self._held_rows)
            losses.append(-guess[np.arange(len(self._held)), values[self._held]].mean())
        chosen = SHRINKAGES[int(np.argmin(losses))]
        read = self._all.fit(values, n_values, chosen)
        return read(self._standardised(rows.astype(np.float64))), chosen

    def _standardised(self, rows: Float[np.ndarray, "image feature"]) -> np.ndarray:
        return (rows - self._mean)[:, self._varies] / self._deviation


class _Part:
    """Rows with their mean and covariance."""

    def __init__(self, x: Float[np.ndarray, "image feature"]):
        self.mean = x.mean(0)
        self.centred = x - self.mean
        self.total = self.centred.T @ self.centred / len(x)

    def fit(self, values: Int[np.ndarray, " image"], n_values: int, shrinkage: float) -> _Scores:
        counts = np.bincount(values, minlength=n_values)
        assert counts.all(), counts
        share = counts / len(values)
        member = np.zeros((len(values), n_values))
        member[np.arange(len(values)), values] = 1
        means = member.T @ self.centred / counts[:, None]
        shrunk = (1 - shrinkage) * (self.total - (means * share[:, None]).T @ means)
        shrunk[np.diag_indices_from(shrunk)] += shrinkage * self.total.trace() / max(1, len(shrunk))
        weights = np.linalg.solve(shrunk, means.T)
        return _Scores(self.mean, weights, np.log(share) - (means * weights.T).sum(1) / 2)


class _Scores:
    def __init__(self, mean: np.ndarray, weights: np.ndarray, bias: np.ndarray):
        self._mean, self._weights, self._bias = mean, weights, bias

    def __call__(self, rows: Float[np.ndarray, "image feature"]) -> np.ndarray:
        return log_softmax((rows - self._mean) @ self._weights + self._bias, axis=1)
