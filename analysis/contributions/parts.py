"""Every contribution score is a ratio of two sums over images; these are the summands.

So the score of all images, of a class, of one image and of a bootstrap draw is one formula:
sum over the images of the numerator, by sum over the images of the denominator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.contributions.moments import GROUPS, ContributionMoments
from vit_clt.choices import Reduce, ScoreKind, TokenKind

REDUCIBLE: tuple[ScoreKind, ...] = ("projection", "norm")
"""Kinds that can be averaged either way; the others are ratios of means by definition."""
NEGLIGIBLE = 1e-12
"""A sum of squares below this share of what it is measured against is rounding: it counts as 0."""


@dataclass(frozen=True)
class ScoreParts:
    """One target's summands. The last of `numerator` is the bias column."""

    numerator: Float[Tensor, "source_and_bias image"]
    denominator: Float[Tensor, " image"]
    scale: Float[Tensor, " image"]
    """||y^||^2, against which a denominator that vanishes but for rounding is told; 0 where it
    cannot be other than 0 or sound."""
    excluded: Int[Tensor, " image"]
    """Rows left out because their ||y^||^2 is below `NEGLIGIBLE` of its mean over all images."""


def score_parts(
    moments: ContributionMoments, target: int, tokens: TokenKind, kind: ScoreKind, reduce: Reduce
) -> ScoreParts:
    """The summands of one score at one target layer, over the rows of a token kind."""
    found = moments.targets[target]
    groups = GROUPS[tokens]
    n_rows = sum(moments.rows[g] for g in groups)

    def summed(values: Tensor) -> Tensor:
        return values[..., groups].sum(-1)

    power = summed(found.yy)
    nothing = torch.zeros_like(power)
    undefined = torch.full_like(power, torch.nan)
    excluded = torch.zeros(len(power), dtype=torch.long)
    if reduce == "mean_of_ratios" and kind in REDUCIBLE:
        ratios = found.ratio if kind == "projection" else found.norm_ratio
        bias = summed(found.bias_ratio) if kind == "projection" else undefined
        rows = summed(found.ratio_rows if kind == "projection" else found.norm_rows)
        total = summed(ratios)
        negligible = NEGLIGIBLE * float(power.sum()) / (n_rows * len(power))
        for row in (row for row in found.suspects if row.group in groups):
            if row.yy < negligible or row.yy <= 0:
                excluded[row.image] += 1
                continue
            own = row.ratio if kind == "projection" else row.norm_ratio
            # every term silent: such a row has no norm shares
            if kind == "projection" or own.isfinite().all():
                total[:, row.image] += own
                bias[row.image] += row.bias_ratio
                rows[row.image] += 1
        return _parts(total, bias, rows, nothing, excluded)
    if kind == "projection":
        return _parts(summed(found.cy), summed(found.by), power, nothing, excluded)
    if kind == "centred":
        together = summed(found.centred)
        # the terms about their means add up to y^ about its mean
        return _parts(together, nothing, together.sum(0), power, excluded)
    if kind == "norm":
        norms = summed(found.norm)
        return _parts(norms, undefined, norms.sum(0), nothing, excluded)
    bias_square = n_rows * found.bias.double().square().sum().cpu()
    if kind == "loo":
        return _parts(summed(found.cc), nothing + bias_square, power, nothing, excluded)
    fall = 2 * summed(found.ce) + summed(found.cc)
    bias_fall = 2 * summed(found.be) + bias_square
    return _parts(fall, bias_fall, moments.variation[tokens][target], power, excluded)


def shares(
    numerator: Float[Tensor, "*draw source_and_bias"],
    denominator: Float[Tensor, "*draw"],
    scale: Float[Tensor, "*draw"],
) -> Float[Tensor, "*draw source_and_bias"]:
    """Scores from sums over images of `ScoreParts`; NaN where a denominator is only rounding."""
    defined = denominator > NEGLIGIBLE * scale
    return torch.where(defined[..., None], numerator / denominator[..., None], torch.nan)


def _parts(
    sources: Tensor, bias: Tensor, denominator: Tensor, scale: Tensor, excluded: Tensor
) -> ScoreParts:
    return ScoreParts(torch.cat([sources, bias[None]]), denominator, scale, excluded)
