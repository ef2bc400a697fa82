"""Rank correlation by target between two rankings of source layers, beside a permutation floor.

Row l of C(s->l) is ranked over its sources s < l, the diagonal left out, and compared with row l of
the causal effects: Spearman's rho and Kendall's tau-b per target, their mean over targets with at
least three such sources. The floor shuffles every row of C over its sources. The diagonal is ranked
too where the effects have one. `rank_lead` asks by how much C ranks better than a rival does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.similarity import pearson
from vit_clt.errors import InputError
from vit_clt.metrics import Metric

MIN_SOURCES = 3
"""The least number of sources that can be ranked: of two, rho is 1 or -1 and nothing between."""
PERMUTATIONS = 1000


@dataclass(frozen=True)
class Agreement:
    """A mean rank correlation over targets."""

    value: Interval
    """NaN where no target has a correlation; the interval is over images, none without draws."""
    floor: Interval
    """Mean over permutations of C's rows, with the central 95 % of the permutations."""
    p: float
    """Share of permutations that agree at least as well; the measured order counts as one."""

    def metrics(self, name: str, n: int) -> list[Metric]:
        """The value as `name`, the 97.5 % quantile of permutations, and p; n counts images."""
        return [
            self.value.metric(name, "fraction", n, self.floor),
            Metric(f"{name}_permuted_high", self.floor.high, "fraction", n),
            Metric(f"{name}_p", self.p, "fraction", n),
        ]


@dataclass(frozen=True)
class RankAgreement:
    """Rank correlations of two [target, source] matrices, target by target."""

    by_target: pd.DataFrame
    """Columns target, n_sources, spearman, kendall. A correlation is NaN where one of the two does
    not vary over the sources of the target, or is NaN (a target that does not vary over images)."""
    spearman: Agreement
    kendall: Agreement
    n_targets: int
    """Number of targets in the mean: those whose correlation is defined."""

    def metrics(self, prefix: str, n: int) -> list[Metric]:
        """Both means with their intervals, the 97.5 % quantiles of permutations, and p.

        Args:
            prefix: start of each name, which says what is compared.
            n: number of images.
        """
        return [
            *self.spearman.metrics(f"{prefix}_spearman", n),
            *self.kendall.metrics(f"{prefix}_kendall", n),
        ]


def rank_agreement(
    scores: Float[np.ndarray, "target source"],
    effects: Float[np.ndarray, "target source"],
    *,
    score_draws: Float[np.ndarray, "draw target source"] | None = None,
    effect_draws: Float[np.ndarray, "draw target source"] | None = None,
    diagonal: bool = False,
    seed: int = 0,
) -> RankAgreement:
    """Rank correlation of scores with effects at every target, over its sources below the diagonal.

    Args:
        scores: C(s->l).
        effects: causal effects of s on l.
        score_draws: scores on bootstrap resamples of the images. Where they are missing the scores
            stay fixed, and the interval leaves their noise out.
        effect_draws: likewise of effects, on the same resamples if both are given.
        diagonal: rank the target's own layer among its sources too.
        seed: seed of the permutations.

    Raises:
        InputError: the matrices differ in shape, or no target has three sources to be ranked.
    """
    return _agree(_rows(scores, effects, score_draws, effect_draws, diagonal), seed)


def rank_lead(
    scores: Float[np.ndarray, "target source"],
    rival: Float[np.ndarray, "target source"],
    effects: Float[np.ndarray, "target source"],
    *,
    score_draws: Float[np.ndarray, "draw target source"] | None = None,
    effect_draws: Float[np.ndarray, "draw target source"] | None = None,
    diagonal: bool = False,
) -> Interval:
    """Mean over targets of Spearman(scores, effects) - Spearman(rival, effects), paired.

    Both correlations of a target are of the same draw of the effects. A target where either is
    undefined counts in neither mean. The rival is a fixed ranking, as depth is: its own values have
    no draws.

    Args:
        scores: C(s->l).
        rival: what else ranks the sources.
        effects: causal effects of s on l.
        score_draws, effect_draws: as in `rank_agreement`; no interval without either.
        diagonal: rank the target's own layer among its sources too.

    Raises:
        InputError: the matrices differ in shape, or no target has three sources to be ranked.
    """
    pairs = list(
        zip(
            _rows(scores, effects, score_draws, effect_draws, diagonal),
            _rows(rival, effects, None, effect_draws, diagonal),
            strict=True,
        )
    )
    leads = np.array([spearman(a.c, a.effect) - spearman(b.c, b.effect) for a, b in pairs])
    drawn = None
    if pairs[0][0].drawn:
        drawn = np.array([spearman(*a.draws()) - spearman(*b.draws()) for a, b in pairs])
    return _mean_interval(leads, drawn)


def row_agreement(
    scores: Float[np.ndarray, " source"],
    effects: Float[np.ndarray, " source"],
    *,
    effect_draws: Float[np.ndarray, "draw source"] | None = None,
    seed: int = 0,
) -> RankAgreement:
    """Rank correlation of C(s->L-1) with effects on the output, over all sources of one target.

    Raises:
        InputError: scores and effects differ in length, or there are fewer than three sources.
    """
    _check_shapes(scores, effects, None, effect_draws)
    if len(scores) < MIN_SOURCES:
        raise InputError("scores", f"have {len(scores)} sources; expected at least {MIN_SOURCES}.")
    return _agree([_Row(len(scores) - 1, scores, effects, None, effect_draws)], seed)


def _rows(
    scores: np.ndarray,
    effects: np.ndarray,
    score_draws: np.ndarray | None,
    effect_draws: np.ndarray | None,
    diagonal: bool,
) -> list[_Row]:
    _check_shapes(scores, effects, score_draws, effect_draws)
    lowest = MIN_SOURCES - diagonal
    if len(scores) <= lowest:
        raise InputError(
            "scores",
            f"have {len(scores)} layers; a ranking of sources needs at least {lowest + 1}.",
        )
    return [
        _Row(
            target=l,
            c=scores[l, : l + diagonal],
            effect=effects[l, : l + diagonal],
            c_draws=None if score_draws is None else score_draws[:, l, : l + diagonal],
            effect_draws=None if effect_draws is None else effect_draws[:, l, : l + diagonal],
        )
        for l in range(lowest, len(scores))
    ]


def _check_shapes(
    scores: np.ndarray,
    effects: np.ndarray,
    score_draws: np.ndarray | None,
    effect_draws: np.ndarray | None,
) -> None:
    if scores.shape != effects.shape or (scores.ndim == 2 and len(set(scores.shape)) > 1):
        raise InputError(
            "scores",
            f"have shape {scores.shape} and effects {effects.shape}; expected one shape, "
            "as many targets as sources.",
        )
    draws = [d.shape for d in (score_draws, effect_draws) if d is not None]
    if any(shape[1:] != scores.shape for shape in draws) or len(set(draws)) > 1:
        raise InputError(
            "draws", f"have shapes {draws}; expected one shape, (draws, {str(scores.shape)[1:]}."
        )


@dataclass(frozen=True)
class _Row:
    target: int
    c: np.ndarray
    effect: np.ndarray
    c_draws: np.ndarray | None
    effect_draws: np.ndarray | None

    @property
    def drawn(self) -> bool:
        return self.c_draws is not None or self.effect_draws is not None

    def draws(self) -> tuple[np.ndarray, np.ndarray]:
        return (
            self.c if self.c_draws is None else self.c_draws,
            self.effect if self.effect_draws is None else self.effect_draws,
        )


def _agree(rows: list[_Row], seed: int) -> RankAgreement:
    rng = np.random.default_rng(seed)
    shuffled = [rng.permuted(np.tile(r.c, (PERMUTATIONS, 1)), axis=1) for r in rows]
    columns, means = {}, {}
    for name, correlate in (("spearman", spearman), ("kendall", _kendall)):
        values = np.array([correlate(r.c, r.effect) for r in rows])
        floor = np.array([correlate(c, r.effect) for c, r in zip(shuffled, rows, strict=True)])
        draws = np.array([correlate(*r.draws()) for r in rows]) if rows[0].drawn else None
        columns[name], means[name] = values, _mean_over_targets(values, floor, draws)
    by_target = pd.DataFrame(
        {"target": [r.target for r in rows], "n_sources": [len(r.c) for r in rows], **columns}
    )
    n_targets = int(by_target["spearman"].notna().sum())
    return RankAgreement(by_target, means["spearman"], means["kendall"], n_targets)


def _mean_over_targets(
    values: np.ndarray, floor: np.ndarray, draws: np.ndarray | None
) -> Agreement:
    varied = ~np.isnan(values)
    if not varied.any():
        nothing = Interval(float("nan"))
        return Agreement(nothing, nothing, float("nan"))
    value = _mean_interval(values, draws)
    means = floor[varied].mean(0)
    p = (1 + int((means >= value - 1e-12).sum())) / (1 + len(means))
    return Agreement(value, Interval.of(means.mean(), means), p)


def _mean_interval(values: np.ndarray, draws: np.ndarray | None) -> Interval:
    varied = ~np.isnan(values)
    if not varied.any():
        return Interval(float("nan"))
    value = Interval(values[varied].mean())
    if draws is None:
        return value
    # A resample in which a target's scores happen not to vary has no correlation there.
    drawn = pd.DataFrame(draws[varied]).mean().dropna().to_numpy()
    return Interval.of(value, drawn) if len(drawn) else value


def spearman(
    x: Float[np.ndarray, "*x_batch value"], y: Float[np.ndarray, "*y_batch value"]
) -> Float[np.ndarray, "*batch"]:
    """Spearman's rho along the last axis, ties at their mean rank; NaN where x or y is constant.

    Axes before the last are broadcast.
    """
    from scipy.stats import rankdata  # takes a second to import

    x, y = np.broadcast_arrays(x, y)
    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def _kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # This is tau-b over the last axis; that of scipy takes one pair of vectors at a time.
    i, j = np.triu_indices(x.shape[-1], 1)
    with np.errstate(invalid="ignore"):
        signs_x, signs_y = (np.sign(v[..., i] - v[..., j]) for v in np.broadcast_arrays(x, y))
    scale = np.sqrt(np.abs(signs_x).sum(-1) * np.abs(signs_y).sum(-1))
    shared = (signs_x * signs_y).sum(-1)
    return np.divide(shared, scale, out=np.full(shared.shape, np.nan), where=scale > 0)
