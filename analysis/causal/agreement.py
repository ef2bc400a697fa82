"""Contribution scores of a CLT against the causal effects of the ViT's own layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_clt.analysis.causal.effects import CausalEffects
from vit_clt.analysis.causal.targets import PATHS, Path
from vit_clt.analysis.contributions.scores import ContributionScores
from vit_clt.analysis.stats.ranks import RankAgreement, rank_agreement, row_agreement
from vit_clt.errors import InputError


def score_agreement(
    effects: CausalEffects, scores: Sequence[ContributionScores]
) -> dict[str, RankAgreement]:
    """Rank agreement of each kind of score with total and direct effects, below the diagonal.

    Where outputs were read, also of the last row C(s->L-1), over all s, with the rise in loss.
    Intervals are over images of the effects; scores are held at their values.

    Args:
        effects: of the model the scores' CLT was trained on.
        scores: of the same images and rows.

    Raises:
        InputError: scores of other rows or images than the effects.
    """
    found = {}
    for score in scores:
        measured = (score.tokens, score.data, score.n_images)
        expected = (effects.tokens, effects.data, effects.n)
        if measured != expected:
            raise InputError(
                "scores",
                f"were measured on {measured[0]} rows of {measured[1]} (N = {measured[2]}); "
                f"expected {expected[0]} of {expected[1]} (N = {expected[2]}), as the effects.",
            )
        matrix = score.matrix.numpy()
        for path in PATHS:
            found[f"{score.kind} C, {path} effect on y"] = rank_agreement(
                matrix,
                effects.matrix(path),
                effect_draws=effects.draws(path),
                seed=effects.seed,
            )
        if effects.readings is not None:
            for path in PATHS:
                rise, draws = effects.loss_rise(path)
                found[f"{score.kind} C, {path} effect on loss"] = row_agreement(
                    matrix[-1], rise, effect_draws=draws, seed=effects.seed
                )
    return found


def depth_agreement(effects: CausalEffects, path: Path) -> RankAgreement:
    """The same with the source's number in C's place (deeper first): what needs no CLT."""
    n = effects.n_layers
    return rank_agreement(
        np.tile(np.arange(float(n)), (n, 1)),
        effects.matrix(path),
        effect_draws=effects.draws(path),
        seed=effects.seed,
    )
