"""The summands of contribution scores: every score is a ratio of two sums over images.

One formula therefore gives the score of all images, of a class, of one image and of a bootstrap
draw: the sum of the numerators over the images, divided by the sum of the denominators.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.contributions.moments import ContributionMoments
from vit_clt.choices import ContributionKind, Reduce, TokenKind
from vit_clt.hooks.rows import ROW_GROUPS

REDUCIBLE: tuple[ContributionKind, ...] = ("projection", "norm")
"""Kinds that can be averaged either way; the others are ratios of means by definition."""
NEGLIGIBLE = 1e-12
"""A sum of squares below this share of the sum it is compared with counts as 0: it is rounding."""


@dataclass(frozen=True)
class ScoreParts:
    """Summands of one score at one target by group of images, each of one image as a rule; the rows
    of `numerator` belong to the sources, to a skip connection if there is one, and to the bias."""

    numerator: Float[Tensor, "column image_group"]
    denominator: Float[Tensor, " image_group"]
    scale: Float[Tensor, " image_group"]
    """||y^||^2, with which a denominator is compared to see whether it is only rounding; 0 where a
    denominator is either exactly 0 or sound."""
    excluded: Int[Tensor, " image_group"]
    """Number of token rows left out because their ||y^||^2 is below `NEGLIGIBLE` of its mean over
    all images."""


def score_parts(
    moments: ContributionMoments,
    target: int,
    tokens: TokenKind,
    kind: ContributionKind,
    reduce: Reduce,
) -> ScoreParts:
    """The summands of one score at one target layer, over the rows of a token kind."""
    sums = moments.targets[target]
    row_groups = ROW_GROUPS[tokens]
    n_rows = sum(moments.rows.sizes[g] for g in row_groups)

    def over_rows(values: Tensor) -> Tensor:
        return values[..., row_groups].sum(-1)

    power = over_rows(sums.yy)
    zeros = torch.zeros_like(power)
    undefined = torch.full_like(power, torch.nan)
    excluded = torch.zeros(len(power), dtype=torch.long)
    if reduce == "mean_of_ratios" and kind in REDUCIBLE:
        ratios = sums.ratio if kind == "projection" else sums.norm_ratio
        bias = over_rows(sums.bias_ratio) if kind == "projection" else undefined
        rows = over_rows(sums.ratio_rows if kind == "projection" else sums.norm_rows)
        total = over_rows(ratios)
        negligible = NEGLIGIBLE * float(power.sum()) / (n_rows * moments.n_images)
        for row in (row for row in sums.suspects if row.row_group in row_groups):
            if row.yy < negligible or row.yy <= 0:
                excluded[row.image_group] += 1
                continue
            row_ratio = row.ratio if kind == "projection" else row.norm_ratio
            # A row on which every term is zero has no norm shares.
            if kind == "projection" or row_ratio.isfinite().all():
                total[:, row.image_group] += row_ratio
                bias[row.image_group] += row.bias_ratio
                rows[row.image_group] += 1
        return _parts(total, bias, rows, zeros, excluded)
    if kind == "projection":
        return _parts(over_rows(sums.cy), over_rows(sums.by), power, zeros, excluded)
    if kind == "centred":
        centred = over_rows(sums.centred)
        # The terms about their means add up to y^ about its mean.
        return _parts(centred, zeros, centred.sum(0), power, excluded)
    if kind == "norm":
        norms = over_rows(sums.norm)
        return _parts(norms, undefined, norms.sum(0), zeros, excluded)
    bias_square = n_rows * sums.bias.double().square().sum().cpu() * moments.groups.sizes
    if kind == "loo":
        return _parts(over_rows(sums.cc), zeros + bias_square, power, zeros, excluded)
    fall = 2 * over_rows(sums.ce) + over_rows(sums.cc)
    bias_fall = 2 * over_rows(sums.be) + bias_square
    return _parts(fall, bias_fall, moments.variation[tokens][target], power, excluded)


def shares(
    numerator: Float[Tensor, "*draw column"],
    denominator: Float[Tensor, "*draw"],
    scale: Float[Tensor, "*draw"],
) -> Float[Tensor, "*draw column"]:
    """Scores from the sums of `ScoreParts` over images; NaN where a denominator is only rounding.

    Args:
        numerator: sums of `ScoreParts.numerator`.
        denominator: sums of `ScoreParts.denominator`.
        scale: sums of `ScoreParts.scale`.
    """
    defined = denominator > NEGLIGIBLE * scale
    return torch.where(defined[..., None], numerator / denominator[..., None], torch.nan)


def _parts(
    terms: Tensor, bias: Tensor, denominator: Tensor, scale: Tensor, excluded: Tensor
) -> ScoreParts:
    return ScoreParts(torch.cat([terms, bias[None]]), denominator, scale, excluded)
