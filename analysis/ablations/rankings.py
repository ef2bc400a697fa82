"""Orders in which the source layers of every target are kept or dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.choices import Ranking, ScoreKind, check_choice
from vit_clt.errors import InputError


@dataclass(frozen=True)
class Order:
    """An order of the sources of every target."""

    ranking: Ranking
    draw: int
    """Number of the random order; 0 for every other ranking."""
    sources: dict[int, list[int]]
    """By target, all its sources, first to last."""

    def top(self, k: int) -> dict[int, list[int]]:
        """The first k sources of every target, in order; all of them where a target has fewer."""
        return {target: ranked[:k] for target, ranked in self.sources.items()}


def rank_sources(scores: SourceScores, target: int) -> list[int]:
    """Sources of a target from highest to lowest signed score; ties go to the later layer.

    Raises:
        InputError: a score is NaN (a centred score of a reconstruction that does not vary).
    """
    row = scores.matrix[target][: target % len(scores.matrix) + 1].tolist()
    if any(value != value for value in row):
        raise InputError(
            "scores", f"hold NaN at layer {target}; expected a number for every source."
        )
    return sorted(range(len(row)), key=lambda s: (-row[s], -s))


def source_orders(
    scores: SourceScores,
    targets: Sequence[int],
    rankings: Sequence[Ranking],
    *,
    rescored: Callable[[ScoreKind], SourceScores],
    draws: int = 5,
    seed: int = 0,
) -> list[Order]:
    """One order for each ranking, without repeats; `draws` orders for "random".

    Args:
        scores: scores of the main ranking; "bottom" reverses it.
        targets: layers whose sources are ordered, each by its row of the scores.
        rankings: names of the rankings, at least one.
        rescored: gives scores of another kind.
        draws: number of random orders.
        seed: seed of the random orders.

    Raises:
        InputError: a ranking is unknown, there is no ranking or no draw, or a score is NaN.
    """
    known = get_args(Ranking)
    if not rankings:
        raise InputError("rankings", f"is empty; expected at least one of {', '.join(known)}.")
    if draws < 1:
        raise InputError("draws", f"is {draws}; expected at least 1 random order.")
    orders = []
    for ranking in dict.fromkeys(rankings):
        check_choice("rankings", ranking, known)
        if ranking == "random":
            for draw in range(draws):
                rng = np.random.default_rng([seed, draw])
                drawn = {target: rng.permutation(target + 1).tolist() for target in targets}
                orders.append(Order(ranking, draw, drawn))
        elif ranking == "last":
            orders.append(Order(ranking, 0, {t: list(range(t, -1, -1)) for t in targets}))
        elif ranking == "bottom":
            orders.append(Order(ranking, 0, {t: rank_sources(scores, t)[::-1] for t in targets}))
        else:
            ranked = scores if ranking == scores.kind else rescored(ranking)
            orders.append(Order(ranking, 0, {t: rank_sources(ranked, t) for t in targets}))
    return orders
