"""Evidence for a CLT's attribution of one layer, and the verdict drawn from it by a fixed rule.

    1. causes    C ranks layers as true ablation does: the interval of the mean rank correlation
                 with the ViT's own causal effects, off-diagonal, lies above 0
    2. best sets the k sources with the highest C are among the best 5 % of all sets of k when kept
                 (loss, dropped terms at zero), and better than the k deepest (paired interval)
    3. fill      their lead over the k deepest is there at zero fill, and its paired interval stays
                 above 0 when dropped terms are at their mean

"supported" if all three hold, "unsupported" if none does, else "mixed". The rule is ours, fixed
before any CLT was judged by it. A chosen set that is the k deepest has no lead over them: C has
then said nothing that "take the last layers" does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from vit_clt.analysis.causal import CausalEffects
from vit_clt.analysis.contributions import (
    ContributionScores,
    ScoreKind,
    contribution_moments,
    score,
)
from vit_clt.analysis.keep_sets import KeepSets, keep_sets
from vit_clt.analysis.rank_agreement import RankAgreement, rank_agreement
from vit_clt.analysis.target_effects import PATHS, Path
from vit_clt.analysis.term_sets import Fill
from vit_clt.data import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, TokenKind, layer_list
from vit_clt.transcoder import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot

Verdict = Literal["supported", "mixed", "unsupported"]
KINDS: tuple[ScoreKind, ...] = ("projection", "centred")
BEST = 0.05
"""Share of all sets that counts as the best."""


@dataclass(frozen=True)
class Condition:
    """One of the verdict's three."""

    name: str
    holds: bool
    reason: str
    """The numbers it was decided by."""


@dataclass(frozen=True)
class Evidence:
    """Scores, causal agreement and keep-sets of one CLT on one set of images."""

    scores: dict[ScoreKind, ContributionScores]
    agreement: dict[tuple[ScoreKind, Fill, Path], RankAgreement]
    """Per kind of score, fill of the causal ablation, and path, with effects on y."""
    depth_agreement: RankAgreement
    """The same for a ranking by depth alone (deeper source first), total effects, mean ablation:
    what needs no CLT."""
    sets: dict[Fill, KeepSets]

    @cached_property
    def conditions(self) -> list[Condition]:
        """The three conditions, in order."""
        causes = self.agreement["projection", "mean", "total"].spearman
        zero, mean = self.sets["zero"], self.sets["mean"]
        better = zero.chosen.better["loss"]
        lead, low, high = _lead(zero)
        mean_lead, mean_low, mean_high = _lead(mean)
        last = next(mark for mark in zero.marked if mark.name == "last")
        same = last.sources == zero.chosen.sources
        note = " (the chosen set is the deepest one)" if same else ""
        return [
            Condition(
                "causes",
                causes.low > 0,
                f"mean Spearman {causes.value:.2f} ({causes.low:.2f} to {causes.high:.2f}), "
                f"permuted rows {causes.floor:.2f}, depth alone "
                f"{self.depth_agreement.spearman.value:.2f}",
            ),
            Condition(
                "best sets",
                better <= BEST and low > 0,
                f"{100 * better:.1f} % of {len(zero.sets)} sets are better; loss of the deepest "
                f"minus chosen {lead:+.4f} nats ({low:+.4f} to {high:+.4f}){note}",
            ),
            Condition(
                "fill",
                lead > 0 and mean_low > 0,
                f"with dropped terms at their mean {mean_lead:+.4f} nats "
                f"({mean_low:+.4f} to {mean_high:+.4f}){note}",
            ),
        ]

    @property
    def verdict(self) -> Verdict:
        """The rule above."""
        held = sum(condition.holds for condition in self.conditions)
        return "supported" if held == 3 else "mixed" if held else "unsupported"


def gather_evidence(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    effects: Sequence[CausalEffects],
    *,
    k: int = 4,
    target: int = -1,
    seed: int = 0,
    progress: bool = False,
) -> Evidence:
    """Score the CLT, read its keep-sets at every fill, and compare with causal effects.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images, those the effects were measured on.
        zs: the zero-shot classifier.
        effects: of the ViT itself, one for each fill, "mean" among them; `tokens` is theirs.
        k: sources a set holds.
        target: the layer whose rows are rebuilt; -1 is the last.
        seed: of everything random.
        progress: show progress bars.

    Raises:
        InputError: no effects by mean ablation, effects of other images, k out of range, or rows
            that cannot reach the output.
    """
    by_fill = {each.fill: each for each in effects}
    if "mean" not in by_fill:
        raise InputError(f"effects hold fills {sorted(by_fill)}; expected mean among them.")
    tokens = by_fill["mean"].tokens
    for each in effects:
        if (each.tokens, each.data, each.n) != (tokens, data.name, len(data)):
            raise InputError(
                f"effects were measured on {each.tokens} rows of {each.data} (N = {each.n}); "
                f"expected {tokens} rows of {data.name} (N = {len(data)})."
            )
    check_question(vit, tokens, target, k)
    moments = contribution_moments(vit, clt, data, progress=progress)
    scores = {kind: score(moments, tokens=tokens, kind=kind, seed=seed) for kind in KINDS}
    agreement = {
        (kind, fill, path): rank_agreement(
            scores[kind].matrix.numpy(),
            found.matrix(path),
            score_draws=scores[kind].draws[:, :, :-1],
            effect_draws=found.draws(path),
            seed=seed,
        )
        for kind in KINDS
        for fill, found in by_fill.items()
        for path in PATHS
    }
    n = len(scores["projection"].matrix)
    total = by_fill["mean"]
    by_depth = rank_agreement(
        np.tile(np.arange(float(n)), (n, 1)),
        total.matrix("total"),
        effect_draws=total.draws("total"),
        seed=seed,
    )
    sets = {
        fill: keep_sets(
            vit,
            clt,
            data,
            zs,
            k=k,
            scores=scores["projection"],
            target=target,
            tokens=tokens,
            fill=fill,
            seed=seed,
            progress=progress,
        )
        for fill in get_args(Fill)
    }
    return Evidence(scores, agreement, by_depth, sets)


def check_question(vit: HookedViT, tokens: TokenKind, target: int, k: int) -> None:
    """Refuse what no keep-set could answer, before anything is computed.

    Raises:
        InputError: a target or k out of range, or rows that cannot reach the output.
    """
    [layer] = layer_list(target, vit.cfg.n_layers)
    if not 0 < k <= layer:
        raise InputError(
            f"k is {k}; layer {layer} has {layer + 1} sources, expected at least 1 and fewer."
        )
    if tokens == "patch" and layer == vit.cfg.n_layers - 1 and vit.cfg.pools_cls:
        raise InputError(
            "tokens is patch at the last layer, whose rows cannot reach the output; expected "
            "another target or cls."
        )


def _lead(sets: KeepSets) -> tuple[float, float, float]:
    """Loss of the k deepest minus that of the chosen set, with its paired interval."""
    return sets.readings.difference("last", sets.chosen.name, "loss")
