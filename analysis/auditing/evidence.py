"""Evidence for a CLT's attribution of one layer, and the verdict that a rule derives from it.

    1. causes    C ranks layers as ablation of the ViT does: over all targets, the interval of the
                 mean rank correlation with the ViT's own causal effects, off-diagonal, lies above
                 0, and its value above the 97.5 % quantile of permuted rows of C (an interval over
                 images alone shrinks around any number, also a chance agreement of a few layers)
    2. best sets the k sources with the highest C are among the best 5 % of all sets of k when kept
                 (loss, dropped terms at zero), and better than the k deepest (paired interval);
                 they are chosen on a random half of the images and read on the other
    3. fill      their lead over the k deepest is positive at zero fill, and its paired interval
                 stays above 0 when dropped terms are at their mean

"supported" if all three hold, "unsupported" if none does, else "mixed". The rule is ours. It was
tightened after the first audits: a CLT had passed the first check by chance, and a control the
third, so the comparison with permuted rows and the two halves were added. A chosen set that is the
k deepest has no lead over them: C then adds nothing to "take the last layers".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from vit_clt.analysis.ablations.all_sets import keep_sets
from vit_clt.analysis.ablations.all_sets_result import KeepSets
from vit_clt.analysis.causal.agreement import depth_agreement
from vit_clt.analysis.causal.effects import CausalEffects
from vit_clt.analysis.causal.targets import PATHS, Path
from vit_clt.analysis.contributions.moments import contribution_moments
from vit_clt.analysis.contributions.scores import ContributionScores, contribution_scores, score
from vit_clt.analysis.stats.halves import halves
from vit_clt.analysis.stats.ranks import MIN_SOURCES, RankAgreement, rank_agreement
from vit_clt.choices import ContributionKind, Fill, TokenKind
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, layer_list
from vit_clt.hooks.rows import rows_unread
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

Verdict = Literal["supported", "mixed", "unsupported"]
KINDS: tuple[ContributionKind, ...] = ("projection", "centred")
BEST = 0.05
"""Share of all sets that counts as the best."""


@dataclass(frozen=True)
class Condition:
    """One of the three conditions of the verdict."""

    name: str
    holds: bool
    reason: str
    """The numbers that decide the condition, as text."""


def account(conditions: Sequence[Condition]) -> str:
    """Which conditions held and which failed, as "held: causes; failed: best sets, fill"."""
    by_outcome = {
        outcome: [c.name for c in conditions if c.holds == holds]
        for outcome, holds in (("held", True), ("failed", False))
    }
    return "; ".join(f"{name}: {', '.join(found)}" for name, found in by_outcome.items() if found)


@dataclass(frozen=True)
class Evidence:
    """Scores, causal agreement and keep-sets of one CLT on one set of images."""

    scores: dict[ContributionKind, ContributionScores]
    agreement: dict[tuple[ContributionKind, Fill, Path], RankAgreement]
    """Agreement with effects on y, by kind of score, fill of the causal ablation, and path."""
    depth_agreement: RankAgreement
    """Agreement of depth alone (deeper sources first), which needs no CLT, with total effects of
    mean ablation."""
    sets: dict[Fill, KeepSets]
    """Sets of k by fill; the chosen set is that of `projection` on a random half of the images, and
    all sets are read on the other half."""

    @cached_property
    def conditions(self) -> list[Condition]:
        """The three conditions, in order."""
        causes = self.agreement["projection", "mean", "total"].spearman
        zero, mean = self.sets["zero"], self.sets["mean"]
        better = zero.chosen.better["loss"]
        lead, mean_lead = zero.lead, mean.lead
        last = next(mark for mark in zero.marked if mark.name == "last")
        same = last.sources == zero.chosen.sources
        note = " (the chosen set is the deepest one)" if same else ""
        at_target = causes_by_target(self.agreement["projection", "mean", "total"], zero.target)
        return [
            Condition(
                "causes",
                causes.value.low > 0 and causes.value > causes.floor.high,
                f"mean Spearman over targets {causes.value.text('.2f')}, 97.5 % of permuted rows "
                f"below {causes.floor.high:.2f}, p "
                f"{causes.p:.3f}; depth alone {self.depth_agreement.spearman.value:.2f}; layer "
                f"{zero.target} {at_target:.2f}",
            ),
            Condition(
                "best sets",
                better <= BEST and lead.low > 0,
                f"{100 * better:.1f} % of {len(zero.sets)} sets are better; loss of the deepest "
                f"minus chosen {lead:+.4f} nats ({lead.low:+.4f} to {lead.high:+.4f}){note}",
            ),
            Condition(
                "fill",
                lead > 0 and mean_lead.low > 0,
                f"{lead:+.4f} nats at zero fill, {mean_lead.text('+.4f')} with dropped terms at "
                f"their mean{note}",
            ),
        ]

    @property
    def verdict(self) -> Verdict:
        """The verdict by the rule at the top of this module."""
        n_holding = sum(condition.holds for condition in self.conditions)
        return "supported" if n_holding == 3 else "mixed" if n_holding else "unsupported"


def gather_evidence(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    effects: Sequence[CausalEffects],
    *,
    k: int = 4,
    target: int = -1,
    seed: int = 0,
    progress: bool = False,
) -> Evidence:
    """Score the CLT, compare its scores with causal effects, and read its keep-sets at every fill.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images, the same that the effects were measured on.
        classifier: the readout.
        effects: causal effects in the ViT itself, at least those of fill "mean"; their rows are
            the rows that are scored.
        k: number of sources of a set.
        target: the layer whose rows are rebuilt; -1 is the last.
        seed: seed of all draws.
        progress: show progress bars.

    Raises:
        InputError: there are no effects of mean ablation, they are of other images, k is out of
            range, or the rows cannot reach the output.
    """
    by_fill = {e.fill: e for e in effects}
    if "mean" not in by_fill:
        raise InputError("effects", f"hold fills {sorted(by_fill)}; expected mean among them.")
    tokens = by_fill["mean"].tokens
    for e in effects:
        measured = (e.site, e.ablated, e.tokens, e.data, e.n, e.seed)
        if measured != ("mlp", "all", tokens, data.name, len(data), seed):
            raise InputError(
                "effects",
                f"are of {e.ablated} rows of {e.site} on {e.tokens} rows of "
                f"{e.data} (N = {e.n}, seed {e.seed}); expected all rows of mlp on "
                f"{tokens} rows of {data.name} (N = {len(data)}, seed {seed}).",
            )
    check_question(vit, data, tokens, target, k)
    moments = contribution_moments(vit, clt, data, progress=progress)
    scores = {kind: score(moments, tokens=tokens, kind=kind, seed=seed) for kind in KINDS}
    agreement = {
        (kind, fill, path): rank_agreement(
            scores[kind].matrix.numpy(),
            fill_effects.matrix(path),
            score_draws=scores[kind].source_draws,
            effect_draws=fill_effects.draws(path),
            seed=seed,
        )
        for kind in KINDS
        for fill, fill_effects in by_fill.items()
        for path in PATHS
    }
    ranking_half, reading_half = halves(data, seed)
    ranking = contribution_scores(
        vit, clt, ranking_half, tokens=tokens, kind="projection", seed=seed, progress=progress
    )
    sets = {
        fill: keep_sets(
            vit,
            clt,
            reading_half,
            classifier,
            k=k,
            scores=ranking,
            target=target,
            tokens=tokens,
            fill=fill,
            seed=seed,
            progress=progress,
        )
        for fill in get_args(Fill)
    }
    return Evidence(scores, agreement, depth_agreement(by_fill["mean"], "total"), sets)


def check_question(
    vit: HookedViT, data: ImageData, tokens: TokenKind, target: int, k: int, name: str = "k"
) -> None:
    """Check that an audit of these arguments is possible, before anything is computed.

    Args:
        vit: the model.
        data: the images.
        tokens: kind of rows scored.
        target: the layer whose reconstruction is taken apart.
        k: number of sources of a keep-set.
        name: the caller's name of k, for the error.

    Raises:
        InputError: the model has fewer than 4 layers, there are fewer than 4 images or no class
            names, target or k are out of range, or the rows cannot reach the output.
    """
    n = vit.cfg.n_layers
    if n <= MIN_SOURCES:
        raise InputError(
            f"the model has {n} layers; ranking sources needs at least {MIN_SOURCES + 1}."
        )
    if len(data) < 4:
        raise InputError("data", f"has {len(data)} images; expected at least 4, two halves of two.")
    if not data.class_names:
        raise InputError("data", f"is {data.name}, which has no class names; expected labels.")
    [layer] = layer_list(target, n)
    if not 0 < k <= layer:
        raise InputError(
            name, f"is {k}; layer {layer} has {layer + 1} sources, expected 1 to {layer}."
        )
    if rows_unread(tokens, layer, n, vit.cfg.pools_cls):
        raise InputError(
            "tokens",
            f"is {tokens} at the last layer, whose rows cannot reach the output; expected "
            "another target or cls.",
        )


def causes_by_target(agreement: RankAgreement, target: int) -> float:
    """Spearman correlation at one target; NaN where it has too few sources."""
    rows = agreement.by_target.set_index("target")["spearman"]
    return float(rows.get(target, float("nan")))
