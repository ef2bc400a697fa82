"""Do direct terms foretell what ablating a head does to the label's logit?

Over the heads, Spearman's rho of the predicted and the measured mean change over images. A direct
term predicts that ablating the head lowers the logit by the term, or by the term less that of the
fill. Measured are the ablation that only the final norm sees, and that with everything recomputed.
The interval draws images, of predictions and measurements alike; the floor deals the predictions to
the heads by chance. Direct terms foretell a measurement where the interval lies above what 97.5 %
of these permutations stay below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vit_clt.analysis.heads.terms import DirectTerms
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.analysis.stats.ranks import PERMUTATIONS, spearman

MEASURED = {
    "direct": "the final norm alone sees it",
    "total": "everything recomputes",
}
"""The measured changes, by the path of the ablation."""


@dataclass(frozen=True)
class TermAgreement:
    """Agreement of one prediction with one measurement over the heads."""

    key: str
    """Name of the prediction in metrics.json."""
    predicted: str
    """The same in words."""
    measured: str
    rho: Interval
    """Spearman's rho; the interval is over images."""
    floor: Interval
    """Mean over permutations, with their central 95 %."""
    slope: Interval
    """sum(m p) / sum(p^2) over heads of measured m on predicted p; 1 is the right size."""

    @property
    def foretells(self) -> bool:
        """Whether the interval lies above what 97.5 % of permutations stay below."""
        return bool(self.rho.low > self.floor.high)


PREDICTED = {
    "direct_term": "direct term",
    "direct_term_less_fill": "direct term less the fill's",
    "differentiated": "the same, norms differentiated",
}
"""What predictions are made from: keys, and words."""


def predictions(terms: DirectTerms) -> dict[str, Float[np.ndarray, "image head"]]:
    """The predicted changes of the logit, by what they are made from (`PREDICTED`)."""
    values = (-terms.heads, terms.fills - terms.heads, -terms.small)
    return {key: each.reshape(len(each), -1) for key, each in zip(PREDICTED, values, strict=True)}


def term_agreement(
    terms: DirectTerms,
    measured: Mapping[str, Float[np.ndarray, "image head"]],
    seed: int = 0,
) -> list[TermAgreement]:
    """Every prediction against every measurement.

    Args:
        terms: the direct terms.
        measured: the measured changes of the label's logit on the same images, by path.
        seed: seed of the bootstrap and of the permutations.
    """
    found = []
    for path, changes in measured.items():
        for key, values in predictions(terms).items():
            found.append(_agreement(key, path, values, changes, seed))
    return found


def _agreement(
    key: str, path: str, predicted: np.ndarray, measured: np.ndarray, seed: int
) -> TermAgreement:
    both = np.concatenate([predicted, measured], axis=1)
    x, y = np.split(both.mean(0), 2)
    draws = np.split(bootstrap_means(both, seed), 2, axis=1)
    rng = np.random.default_rng(seed)
    permuted = spearman(rng.permuted(np.tile(x, (PERMUTATIONS, 1)), axis=1), y)
    return TermAgreement(
        key=key,
        predicted=PREDICTED[key],
        measured=path,
        rho=_interval(float(spearman(x, y)), spearman(*draws)),
        floor=_interval(float(permuted.mean()), permuted),
        slope=_interval(float(_slope(x, y)), _slope(*draws)),
    )


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    power = (x * x).sum(-1)
    return np.divide((x * y).sum(-1), power, out=np.full(power.shape, np.nan), where=power > 0)


def _interval(value: float, drawn: np.ndarray) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    return Interval.of(value, drawn) if len(drawn) else Interval(value)
