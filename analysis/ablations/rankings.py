"""Orders in which source layers are kept or dropped, at each target its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from vit_clt.analysis.contributions.scores import ContributionScores
from vit_clt.choices import Ranking, check_choice
from vit_clt.errors import InputError


@dataclass(frozen=True)
class Order:
    """One ranking of the sources at every target."""

    ranking: Ranking
    draw: int
    """Which of the random orders; 0 for every other ranking."""
    sources: dict[int, list[int]]
    """Per target, all its sources, first to last."""

    def top(self, k: int) -> dict[int, list[int]]:
        """The first k sources of every target, or all where it has no more, in their order."""
        return {target: ranked[:k] for target, ranked in self.sources.items()}


def rank_sources(scores: ContributionScores, target: int) -> list[int]:
    """Sources of a target from highest to lowest signed score; ties go to the later layer.

    Raises:
        InputError: a score is undefined (centred scores of a reconstruction that does not vary).
    """
    row = scores.matrix[target][: target % len(scores.matrix) + 1].tolist()
    if any(value != value for value in row):
        raise InputError(
            "scores", f"hold NaN at layer {target}; expected a number for every source."
        )
    return sorted(range(len(row)), key=lambda s: (-row[s], -s))


def source_orders(
    scores: ContributionScores,
    targets: Sequence[int],
    rankings: Sequence[Ranking],
    *,
    draws: int = 5,
    seed: int = 0,
) -> list[Order]:
    """The orders that `rankings` name, without repeats; "random" gives `draws` of them.

    Args:
        scores: the main ranking; "bottom" is its reverse, other kinds score the same images.
        targets: layers whose sources are ordered, each by its own row of the scores.
        rankings: at least one.
        draws: random orders.
        seed: of the random orders.

    Raises:
        InputError: an unknown ranking, none at all, no draw, or undefined scores.
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
            by = scores if ranking == scores.kind else scores.rescored(ranking)
            orders.append(Order(ranking, 0, {t: rank_sources(by, t) for t in targets}))
    return orders
