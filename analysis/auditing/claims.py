"""What each score claims, and whether images bear it out: C reads, E acts.

    reads   y_l can be rebuilt from depth s to the extent C(s->l). Over targets of at least three
            sources, the mean rank correlation of C(s->l) with the rise of the error where the term
            c_{s->l} is set to its mean (`removed_terms`, s = 0..l) has an interval above 0, and
            lies above what 97.5 % of permuted rows of C reach and above that of depth alone
            (paired). Of the target's sources the k with the highest C, kept, have a lower loss than
            the k deepest (paired), dropped terms at zero and at their mean.
    acts    silencing the features of s does to y_l what ablating MLP_s does in the ViT: the same
            three parts for E(s->l) with the effects of the ViT's own MLPs (total, mean fill, all
            rows, s < l); and over all s the rank correlation of E(s->output) with the rise of the
            ViT's loss lies above what 97.5 % of permutations reach.

Scores, which rank and choose sources, are those of one random half of the images; rises, effects
and losses are measured on the other, so that the two share no noise of their images. A claim is
supported if all of its parts hold. It is no better than depth if only comparisons with depth fail.
The rule is ours.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from vit_clt.analysis.ablations.keep_drop import term_sets
from vit_clt.analysis.ablations.rankings import rank_sources
from vit_clt.analysis.auditing.claims_result import Claim, ClaimName, Claims
from vit_clt.analysis.auditing.evidence import Condition, check_question
from vit_clt.analysis.auditing.removed_terms import removed_terms
from vit_clt.analysis.auditing.surrogate_check import MOST_IMAGES
from vit_clt.analysis.causal.effects import CausalEffects
from vit_clt.analysis.causal.study import causal_effects
from vit_clt.analysis.contributions.scores import ContributionScores, contribution_scores
from vit_clt.analysis.silencing.scores import EffectScores
from vit_clt.analysis.silencing.study import effect_scores
from vit_clt.analysis.stats.halves import halves, random_images
from vit_clt.analysis.stats.ranks import rank_agreement, rank_lead, row_agreement
from vit_clt.choices import KEPT_BYTES, TokenKind
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.hooks import HookedViT, check_fits, layer_list
from vit_clt.metrics import Metric
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.identity import weights_sha256
from vit_clt.transcoder.model import CrossLayerTranscoder

ClaimFill = Literal["zero", "mean"]


def claims(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    tokens: TokenKind = "cls",
    k: int = 4,
    target: int = -1,
    name: str = "CLT",
    kept_bytes: int = KEPT_BYTES,
    seed: int = 0,
    progress: bool = False,
) -> Claims:
    """Test both claims by the rule at the top of this module.

    Intervals of rank correlations cover the choice of images in both halves, of the scores and of
    what they are compared with. Comparisons with depth share every draw of what both are compared
    with. Those of losses cover the images that are measured on, the choice of sources being held.
    No interval covers another training of the CLT.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: labelled images. The effects, of E and of the ViT's own MLPs, are measured on at most
            500 random ones of each half.
        classifier: the readout.
        tokens: kind of rows scored, and overwritten at the target.
        k: number of sources that are kept. It is given, not chosen on the images.
        target: the layer whose sources are kept; -1 is the last.
        name: name of the CLT.
        kept_bytes: the most bytes of codes or terms that are kept between passes over the images.
        seed: seed of the halves and of all draws.
        progress: show progress bars.

    Raises:
        InputError: the question cannot be answered (`check_question`), there is one class, `vit`
            has a hook, or the CLT belongs to another model.
    """
    data = as_image_data(data)
    check_question(vit, data, tokens, target, k)
    check_fits(vit, clt)
    scored, measured = halves(data, seed)
    [layer] = layer_list(target, vit.cfg.n_layers)
    scores = contribution_scores(
        vit,
        clt,
        scored,
        tokens=tokens,
        kind="projection",
        kept_bytes=kept_bytes,
        seed=seed,
        progress=progress,
    )
    reads = _reads(vit, clt, scores, measured, classifier, k, layer, kept_bytes, seed, progress)
    few = [random_images(half, MOST_IMAGES, seed) for half in (scored, measured)]
    effects = effect_scores(
        vit, clt, few[0], classifier, tokens=tokens, seed=seed, progress=progress
    )
    truth = causal_effects(
        vit, few[1], classifier, tokens=tokens, sets=(), seed=seed, progress=progress
    )
    return Claims(
        reads=reads,
        acts=_acts(effects, truth, seed),
        scores=scores,
        effects=effects,
        truth=truth,
        k=k,
        target=layer,
        clt=name,
        weights_sha256=weights_sha256(clt),
        data=data.name,
        split=data.split,
        n=len(data),
    )


def _reads(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    scores: ContributionScores,
    measured: ImageData,
    classifier: Classifier,
    k: int,
    layer: int,
    kept_bytes: int,
    seed: int,
    progress: bool,
) -> Claim:
    tokens = scores.tokens
    rises = removed_terms(vit, clt, measured, tokens=tokens, seed=seed, progress=progress)
    parts, numbers = _ranked(
        "reads",
        scores.matrix.numpy(),
        rises.matrix,
        scores.source_draws,
        rises.draws(seed),
        diagonal=True,
        seed=seed,
        n=len(measured),
    )
    chosen = rank_sources(scores, layer)[:k]
    deepest = list(range(layer, layer - k, -1))
    note = " (the chosen set is the deepest one)" if set(chosen) == set(deepest) else ""
    for fill in get_args(ClaimFill):
        readings = term_sets(
            vit,
            clt,
            measured,
            classifier,
            target=layer,
            tokens=tokens,
            fill=fill,
            kept_bytes=kept_bytes,
            seed=seed,
            progress=progress,
        ).read({"chosen": {layer: chosen}, "deepest": {layer: deepest}})
        lead = readings.difference("deepest", "chosen", "loss")
        reason = f"loss of the deepest minus chosen {lead.text('+.4f')} nats{note}"
        parts.append(Condition(f"{fill} fill", lead.low > 0, reason))
        numbers.append(lead.metric(f"reads_{fill}_lead", "nats", readings.n, floor=0.0))
    return Claim("reads", "C", parts, numbers, len(measured))


def _acts(scores: EffectScores, effects: CausalEffects, seed: int) -> Claim:
    parts, numbers = _ranked(
        "acts",
        scores.matrix.numpy(),
        effects.matrix("total"),
        scores.draws,
        effects.draws("total"),
        diagonal=False,
        seed=seed,
        n=effects.n,
    )
    on_output, (rise, _) = scores.on_output, effects.loss_rise("total")
    assert on_output is not None  # a classifier was given
    found = row_agreement(on_output, rise, seed=seed).spearman
    by_depth = row_agreement(np.arange(float(len(rise))), rise, seed=seed).spearman.value
    parts.append(
        Condition(
            "output",
            found.value > found.floor.high,
            f"Spearman of E(s→output) with the rise of the ViT's loss {found.value:.2f}, 97.5 % of "
            f"permutations below {found.floor.high:.2f}, p {found.p:.3f}; depth alone "
            f"{by_depth:.2f} (earliest first {-by_depth:.2f})",
        )
    )
    numbers += found.metrics("acts_output_spearman", effects.n)
    return Claim("acts", "E", parts, numbers, effects.n)


def _ranked(
    name: ClaimName,
    scores: np.ndarray,
    effects: np.ndarray,
    score_draws: np.ndarray,
    effect_draws: np.ndarray,
    *,
    diagonal: bool,
    seed: int,
    n: int,
) -> tuple[list[Condition], list[Metric]]:
    """The three parts that both claims have, on the rank correlation over targets."""
    depth = np.tile(np.arange(float(len(scores))), (len(scores), 1))
    agreement = rank_agreement(
        scores,
        effects,
        score_draws=score_draws,
        effect_draws=effect_draws,
        diagonal=diagonal,
        seed=seed,
    )
    by_depth = rank_agreement(
        depth, effects, effect_draws=effect_draws, diagonal=diagonal, seed=seed
    )
    lead = rank_lead(
        scores,
        depth,
        effects,
        score_draws=score_draws,
        effect_draws=effect_draws,
        diagonal=diagonal,
    )
    found = agreement.spearman
    parts = [
        Condition(
            "ranks",
            found.value.low > 0,
            f"mean Spearman over {agreement.n_targets} targets {found.value.text('.2f')}",
        ),
        Condition(
            "above permuted",
            found.value > found.floor.high,
            f"97.5 % of permuted rows below {found.floor.high:.2f}, p {found.p:.3f}",
        ),
        Condition(
            "above depth",
            lead.low > 0,
            f"depth alone {by_depth.spearman.value.text('.2f')} (earliest first "
            f"{-by_depth.spearman.value:.2f}), difference {lead.text('+.2f')}",
        ),
    ]
    numbers = [
        *found.metrics(f"{name}_spearman", n),
        *by_depth.spearman.metrics(f"{name}_depth_spearman", n),
        lead.metric(f"{name}_spearman_above_depth", "fraction", n, floor=0.0),
    ]
    return parts, numbers
