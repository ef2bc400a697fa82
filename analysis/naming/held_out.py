"""Whether a text foretells where a feature fires, on images on which it was not chosen.

    AUC(feature, text) = P(an image on which the feature fires matches the text better than one on
                           which it is silent), ties counted half

(`stats.auc`). A text is a feature's name if on the held-out images

    1. its AUC lies above that of at least 95 % of all other texts for this feature (random names);
       with fewer than 20 others, of all,
    2. and above that of at least 95 % of the 20 features nearest in firing rate for this text
       (random features; `stats.equal_rate`), which is all 20,
    3. and above 1/2 with p < 0.01, one-sided, by the normal approximation of the statistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm, rankdata

from vit_clt.analysis.stats.auc import auc
from vit_clt.analysis.stats.equal_rate import POOL, equal_rate

LEAST = 5
"""Fewest images on which a feature must fire, and be silent, in each half."""
SHARE = 0.95
P_VALUE = 0.01
_NORMAL = float(norm.ppf(0.975))


def auc_interval(
    match: Float[np.ndarray, " image"], fired: Bool[np.ndarray, " image"]
) -> tuple[float, float]:
    """The 95 % interval of one AUC, by DeLong's variance, within 0 and 1.

    Where all pairs are ordered alike that variance is 0: then the end is Clopper and Pearson's for
    as many successes as the smaller group has images, 0.025^(1/n).
    """
    positive, negative = match[fired], match[~fired]
    n_1, n_0 = len(positive), len(negative)
    ranked = rankdata(match)
    above = (ranked[fired] - rankdata(positive)) / n_0
    below = 1 - (ranked[~fired] - rankdata(negative)) / n_1
    variance = above.var(ddof=1) / n_1 + below.var(ddof=1) / n_0
    half = _NORMAL * np.sqrt(variance)
    value = above.mean()
    if value in (0, 1):
        end = 0.025 ** (1 / min(n_1, n_0))
        return (end, 1.0) if value else (0.0, 1 - end)
    return max(0.0, value - half), min(1.0, value + half)


@dataclass(frozen=True)
class Verdicts:
    """Features, each with one text, on the held-out images."""

    auc: Float[np.ndarray, " feature"]
    texts_mean: Float[np.ndarray, " feature"]
    """Of all other texts for this feature."""
    texts_high: Float[np.ndarray, " feature"]
    """The least of them that 95 % or more do not exceed."""
    features_mean: Float[np.ndarray, " feature"]
    """Of features of equal rate for this text; NaN where no other feature can be tested."""
    features_high: Float[np.ndarray, " feature"]
    p: Float[np.ndarray, " feature"]
    """One-sided, of an AUC of 1/2."""

    @property
    def holds(self) -> Bool[np.ndarray, " feature"]:
        """Whether each text is a name by the rule of this file."""
        chance = np.fmax(self.texts_high, self.features_high)  # the other one where one is NaN
        return (self.auc > chance) & (self.p < P_VALUE)


class HeldOut:
    """The held-out images of one layer: the AUC of each of its features with each text.

    Args:
        fired: on which held-out images each feature fires.
        ranked: `ranks` of these images.
        rng: of the draws among features of equal rate.
    """

    def __init__(
        self,
        fired: Bool[np.ndarray, "feature image"],
        ranked: Float[np.ndarray, "image text"],
        rng: np.random.Generator,
    ):
        self.counts = fired.sum(1)
        self.n = fired.shape[1]
        self.aucs = auc(fired, ranked)
        self.tested = np.flatnonzero((self.counts >= LEAST) & (self.counts <= self.n - LEAST))
        self._rng = rng
        self._alike: dict[int, list[int]] = {}

    def alike(self, feature: int) -> list[int]:
        """The 20 features nearest in rate in random order, or all others where there are fewer."""
        if feature not in self._alike:
            others = self.tested[self.tested != feature]
            n = min(POOL, len(others))
            self._alike[feature] = (
                equal_rate(self.counts, feature, others, n, self._rng) if n else []
            )
        return self._alike[feature]

    def verdicts(
        self, features: Int[np.ndarray, " feature"], texts: Int[np.ndarray, " feature"]
    ) -> Verdicts:
        """How far each text foretells where its feature fires, beside random texts and features.

        Args:
            features: features among `tested`.
            texts: a text for each.
        """
        rows = np.arange(len(features))
        of_texts = self.aucs[features]
        value = of_texts[rows, texts]
        others = np.delete(of_texts.ravel(), rows * of_texts.shape[1] + texts).reshape(
            len(features), of_texts.shape[1] - 1
        )
        pools = np.array([self.alike(i) for i in features.tolist()], int)
        pools = pools.reshape(len(features), min(POOL, max(0, len(self.tested) - 1)))
        alike = self.aucs[pools, texts[:, None]]
        none = np.full(len(features), np.nan)
        there = self.counts[features].astype(float)
        spread = np.sqrt((self.n + 1) / (12 * there * (self.n - there)))
        return Verdicts(
            value,
            others.mean(1),
            np.quantile(others, SHARE, axis=1, method="higher"),
            alike.mean(1) if alike.size else none,
            np.quantile(alike, SHARE, axis=1, method="higher") if alike.size else none,
            norm.sf((value - 0.5) / spread),
        )
