"""The audit's diagnostics: each asks one question of a CLT's attribution and states the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vit_clt.analysis.ablations.result import SKIP_STAYS
from vit_clt.analysis.auditing.controls import shortcut_example
from vit_clt.analysis.auditing.evidence import Evidence, causes_by_target
from vit_clt.analysis.auditing.ridge import RidgeFit
from vit_clt.analysis.contributions.scores import ContributionScores
from vit_clt.analysis.fit.fidelity_study import Fidelity
from vit_clt.analysis.fit.reconstruction_study import Reconstruction
from vit_clt.analysis.stats.ranks import RankAgreement, rank_agreement
from vit_clt.analysis.stats.readings import MEASURES, UNITS
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Diagnostic:
    """One question of the audit and its answer, with table, figures and metrics."""

    code: str
    """"D1" to "D13", as docs/definitions.md numbers them."""
    question: str
    measured: str
    """What was measured, and on which data."""
    bad: str
    """What a bad answer would look like."""
    found: str
    """The answer for this CLT."""
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    figures: tuple[go.Figure, ...] = ()
    metrics: tuple[Metric, ...] = ()


def per_layer_rivals(fit: Fidelity, clt_name: str, trained_on: str) -> Diagnostic:
    """D1: does a per-layer transcoder, which can read no other depth, do as well?

    Args:
        fit: fidelity of the CLT and of per-layer transcoders.
        clt_name: name of the CLT in `fit`.
        trained_on: how the per-layer transcoders were trained.
    """
    columns = {
        "name": "transcoder",
        "k": "k",
        "n_features": "features a layer",
        "parameters": "parameters",
        "codes_read": "codes a target reads",
        "r2_cls": "R² CLS",
        "r2_patch": "R² patches",
        "top1": "top-1",
        "loss": "loss (nats)",
    }
    table = fit.frame[list(columns)].rename(columns=columns)
    rivals = [name for name in fit.frame["name"] if name != clt_name]
    loss_above = {name: fit.difference(name, clt_name) for name in rivals}
    table["loss above this CLT's"] = [
        "" if name == clt_name else loss_above[name].text("+.4f") for name in fit.frame["name"]
    ]
    texts = [
        f"{name}: {loss:+.4f} nats ({loss.low:+.4f} to {loss.high:+.4f})"
        for name, loss in loss_above.items()
    ]
    metrics = [replace(metric, name=f"D1_{metric.name}") for metric in fit.metrics()]
    metrics += [
        loss.metric(f"D1_{name}_loss_above", "nats", fit.n, floor=0.0)
        for name, loss in loss_above.items()
    ]
    return Diagnostic(
        "D1",
        "Is reading across layers needed at all?",
        f"Transcoders in the place of every MLP, {fit.tokens} rows, stream inputs; "
        f"{fit.data}, N = {fit.n}. Unaltered {100 * fit.original.top1:.2f} % / "
        f"{fit.original.loss:.4f} nats, MLP rows at their mean "
        f"{100 * fit.floor_mean.top1:.2f} % / {fit.floor_mean.loss:.4f}. "
        f"Rivals: {trained_on}. How long this CLT was trained is not known here: a rival of "
        "another budget is no fair one.",
        "A per-layer transcoder does as well: terms from other depths are then a choice of the "
        "fit, not something the model's outputs need.",
        "Loss above this CLT's, paired. " + "; ".join(texts) + ".",
        table,
        metrics=tuple(metrics),
    )


def causes(evidence: Evidence, figures: tuple[go.Figure, ...]) -> Diagnostic:
    """D2: does C rank layers as causal effects of ablating the ViT's own MLPs do?"""
    table = pd.DataFrame(
        {
            "score": kind,
            "ablation": fill,
            "effect": path,
            "Spearman": a.spearman.value,
            "low": a.spearman.value.low,
            "high": a.spearman.value.high,
            "97.5 % of permuted rows": a.spearman.floor.high,
            "p": a.spearman.p,
            "Kendall": a.kendall.value,
            "targets": a.n_targets,
        }
        for (kind, fill, path), a in evidence.agreement.items()
    )
    score = evidence.scores["projection"]
    by_depth = evidence.depth_agreement.spearman.value
    metrics = [
        metric
        for (kind, fill, path), a in evidence.agreement.items()
        for metric in a.metrics(f"D2_{kind}_{fill}_{path}", score.n_images)
    ]
    metrics += evidence.depth_agreement.metrics("D2_depth_alone", score.n_images)
    return Diagnostic(
        "D2",
        "Does C rank layers as true ablation does?",
        "Rank correlation, off the diagonal, of rows of C with the effect on y_l of ablating MLP_s "
        f"(all rows) of the ViT itself; {score.tokens} rows scored, {score.data}, N = "
        f"{score.n_images}; mean over targets, 95 % bootstrap over images.",
        "An interval that holds 0; a correlation that permuted rows of C reach, too (an interval "
        "over images says nothing about that); or one no higher than that of depth alone, which "
        f"needs no CLT ({by_depth:.2f}, {by_depth.low:.2f} to {by_depth.high:.2f}).",
        evidence.conditions[0].reason + ".",
        table,
        figures,
        tuple(metrics),
    )


def floors(evidence: Evidence) -> Diagnostic:
    """D3: is there an effect to be explained?"""
    readings = evidence.sets["zero"].readings
    rows, metrics = [], []
    for measure in MEASURES:
        for name in ("floor_mean", "floor_zero", "full"):
            change, unit = readings.difference(name, "original", measure), UNITS[measure]
            rows.append((name, measure, unit, change, change.low, change.high))
            label = f"D3_{name}_minus_original_{measure}"
            metrics.append(change.metric(label, unit, readings.n))
    table = pd.DataFrame(
        rows, columns=["version", "measure", "unit", "minus unaltered", "low", "high"]
    )
    loss = readings.difference("floor_mean", "original", "loss")
    top1 = readings.difference("floor_mean", "original", "top1")
    sets = evidence.sets["zero"]
    return Diagnostic(
        "D3",
        "Is there an effect to be explained?",
        f"The model's own MLP output at layer {sets.target}, {sets.tokens} rows, at its mean and "
        f"at zero, against the unaltered model; N = {readings.n}, paired intervals.",
        "Intervals that hold 0: these rows hardly matter, and no ablation of terms can say much. A "
        "floor whose loss is below the unaltered model's: lower loss is then not closer to the "
        "model, and D4 and D5 ask the wrong question.",
        f"At its mean: loss {loss:+.4f} nats ({loss.low:+.4f} to {loss.high:+.4f}), accuracy "
        f"{100 * top1:+.2f} points ({100 * top1.low:+.2f} to {100 * top1.high:+.2f}).",
        table,
        metrics=tuple(metrics),
    )


def keep_set_rank(evidence: Evidence) -> Diagnostic:
    """D4: are the sources with the highest C the best ones to keep?"""
    sets = evidence.sets["zero"]
    table = sets.marks()[["set", "sources", "top1", "loss", "rank_loss", "rank_top1", "n_sets"]]
    return Diagnostic(
        "D4",
        "Are the sources with the highest C the best ones to keep?",
        f"{sets.extent} of the sources of layer {sets.target}, {sets.tokens} rows, dropped terms "
        f"at zero; {sets.data}, N = {sets.readings.n}; ranked by loss"
        f"{f'; {SKIP_STAYS}' if sets.has_skip else ''}.",
        "The chosen set in the middle of the distribution, or no better than the deepest layers.",
        evidence.conditions[1].reason + ".",
        table,
        (sets.figure(),),
        tuple(sets.metrics("D4_")),
    )


def fills(evidence: Evidence) -> Diagnostic:
    """D5: does the answer depend on what stands in for a dropped term?"""
    rows, metrics = [], []
    for fill, sets in evidence.sets.items():
        rank, lead, n = sets.chosen.rank["loss"], sets.lead, sets.readings.n
        rows.append((fill, rank, len(sets.sets), lead, lead.low, lead.high))
        metrics.append(Metric(f"D5_{fill}_rank_loss", rank, "count", n))
        metrics.append(lead.metric(f"D5_{fill}_lead_over_last", "nats", n, floor=0.0))
    columns = ["dropped terms", "rank of chosen", "sets", "lead over deepest (nats)", "low", "high"]
    table = pd.DataFrame(rows, columns=columns)
    return Diagnostic(
        "D5",
        "Does the answer survive another fill?",
        "The same keep-sets with dropped terms at zero, at their mean over images, or at those of "
        "another image.",
        "A lead over the deepest layers that is there at zero fill only: it came from constant "
        "parts of the terms, not from what differs between images.",
        evidence.conditions[2].reason + ".",
        table,
        metrics=tuple(metrics),
    )


def ridge(evidence: Evidence, fit: RidgeFit, scores: ContributionScores, target: int) -> Diagnostic:
    """D6: does a dense linear readout split y_l over depths in the same way?"""
    clt_scores = evidence.scores[scores.kind]
    agreement = _agreement(clt_scores, scores)
    at_target = causes_by_target(agreement, target)
    table = pd.DataFrame(
        {
            "source": range(target + 1),
            "C of the CLT": clt_scores.matrix[target, : target + 1].tolist(),
            "C of ridge": scores.matrix[target, : target + 1].tolist(),
        }
    )
    s = agreement.spearman
    r2 = float(np.mean(fit.r2))
    return Diagnostic(
        "D6",
        "Does a dense linear readout tell the same story?",
        f"y_l from x_0..x_l by ridge regression on {fit.tokens} rows of {fit.n_images} other "
        f"images; R² {r2:.3f} as a mean over layers on the {fit.n_held_out} that chose the "
        f"penalty; its C by the same formula ({clt_scores.kind}, {clt_scores.tokens} rows), "
        f"{clt_scores.data}, N = {clt_scores.n_images}; table: shares of layer {target}.",
        "The same ranking: C then says where y_l is linearly readable, and neither sparsity nor "
        "features had a part in it.",
        f"Mean Spearman with ridge's C over targets, off the diagonal, {s.value.text('.2f')}, "
        f"97.5 % of permuted rows below {s.floor.high:.2f}; layer {target} "
        f"{at_target:.2f}.",
        table,
        metrics=(
            *agreement.metrics("D6_ridge", clt_scores.n_images),
            Metric("D6_ridge_r2", r2, "fraction", fit.n_held_out, floor=0.0),
        ),
    )


def depth_profile(fit: Reconstruction, tokens: str, figures: tuple[go.Figure, ...]) -> Diagnostic:
    """D7: L0 and the share read from other layers, by depth."""
    rows = fit.frame[fit.frame["tokens"] == tokens]
    table = rows[["layer", "l0", "cross_layer", "r2", "dead"]].rename(
        columns={"l0": "L0", "cross_layer": "cross-layer share", "r2": "R²", "dead": "dead"}
    )
    deep = rows[rows["layer"] > 0]
    n = int(rows["n_images"].iloc[0])
    return Diagnostic(
        "D7",
        "Where are features active, and how much comes from other layers?",
        f"Active features a token and layer, and 1 - centred C(l→l), {tokens} rows; {fit.data}, "
        f"N = {n}.",
        "Depths whose features never fire can be no source; a cross-layer share near 0 leaves "
        "nothing to attribute, one near 1 says that layer l's own features are not used.",
        f"Cross-layer share {deep['cross_layer'].min():.2f} to {deep['cross_layer'].max():.2f} "
        f"above layer 0; L0 {rows['l0'].min():.1f} to {rows['l0'].max():.1f}; dead "
        f"{100 * rows['dead'].min():.0f} to {100 * rows['dead'].max():.0f} %.",
        table,
        figures,
        tuple(
            Metric(f"D7_{name}_{r.layer}", getattr(r, name), unit, n)
            for name, unit in (("cross_layer", "fraction"), ("l0", "count"), ("dead", "fraction"))
            for r in rows.itertuples()
        ),
    )


def variants(
    scores: Mapping[str, ContributionScores], shapes: Mapping[str, str], trained_on: str
) -> Diagnostic:
    """D8: do other seeds, sparsifiers and initialisations give the same ranking?

    Args:
        scores: by name, scores of this CLT first, then of every variant, on the same images.
        shapes: by name, sparsifier, width and initialisation, for the text.
        trained_on: how the variants were trained.
    """
    clt_scores, *_ = scores.values()
    rows, metrics = [], []
    for (a, first), (b, second) in combinations(scores.items(), 2):
        agreement = _agreement(first, second)
        tau = agreement.kendall
        rows.append((a, b, tau.value, tau.value.low, tau.value.high, tau.floor.high, tau.p))
        metrics += agreement.metrics(f"D8_{a}_with_{b}", clt_scores.n_images)
    columns = ["CLT", "with", "Kendall's tau", "low", "high", "97.5 % of permuted rows", "p"]
    table = pd.DataFrame(rows, columns=columns)
    defined = table.dropna(subset="Kendall's tau")
    text = "No pair has a correlation: rows of C do not vary."
    if len(defined):
        lowest, highest = (
            defined.loc[getattr(defined["Kendall's tau"], end)()] for end in ("idxmin", "idxmax")
        )
        text = " ".join(
            f"{word}: {r['CLT']} with {r['with']}, {r[columns[2]]:.2f} "
            f"({r['low']:.2f} to {r['high']:.2f})."
            for word, r in (("Lowest", lowest), ("Highest", highest))
        )
    return Diagnostic(
        "D8",
        "Would another training tell the same story?",
        f"Kendall's tau between rows of C ({clt_scores.kind}, {clt_scores.tokens} rows, off the "
        f"diagonal, mean over targets) of every two CLTs of the same ViT; {clt_scores.data}, N = "
        f"{clt_scores.n_images}. "
        + "; ".join(f"{name}: {what}" for name, what in shapes.items())
        + f". Variants: {trained_on}.",
        "Low tau between two that differ in the seed alone: the ranking is the training's, not the "
        "model's. Low tau between sparsifiers or initialisations at one seed: it is the method's. "
        "(This CLT may differ from the variants in width and training as well.)",
        text,
        table,
        metrics=tuple(metrics),
    )


def shortcut() -> Diagnostic:
    """D10: can a CLT without error be wrong about the mechanism? Shown on hand-set weights."""
    case = shortcut_example()
    rows = []
    for name, clt in (("deep", case.deep), ("shortcut", case.shortcut)):
        codes = clt.encode(case.x)
        terms = clt.contributions(codes, target=1)
        error = float((clt.decode(codes) - case.y).abs().max())
        share = float(terms[1].square().sum() / case.y[1].square().sum())
        rows.append((name, error, float(codes.l0().sum(0).double().mean()), share))
    table = pd.DataFrame(rows, columns=["CLT", "largest error", "L0 an input", "share of C(1→1)"])
    remaining = float(case.y_without_mlp_0.abs().sum())
    return Diagnostic(
        "D10",
        "Can a CLT without any error be wrong about mechanism?",
        "MLP_0 computes a AND b, MLP_1 (a AND b) AND c; hand-set weights, all 8 inputs, two CLTs.",
        "It can, always: keep this case in mind whatever the other diagnostics say.",
        f"Both rebuild every output exactly. One reads y_1 at depth 1, the other, sparser, at "
        f"depth 0; without MLP_0 the model's y_1 is {remaining:g} everywhere.",
        table,
    )


def controls(
    evidence: Evidence,
    shuffled: Evidence,
    random: Mapping[str, ContributionScores],
    trained_on: str,
) -> Diagnostic:
    """D11: what do terms assigned to sources at random, and an untrained ViT, give?

    Args:
        evidence: evidence for this CLT.
        shuffled: evidence for the same CLT with its terms shuffled over sources.
        random: by name, scores of CLTs of the ViT with shuffled weights.
        trained_on: how those CLTs were trained.
    """
    clt_scores = evidence.scores["projection"]
    rows = [(c.name, c.holds, c.reason) for c in shuffled.conditions]
    table = pd.DataFrame(rows, columns=["condition", "holds for shuffled terms", "reason"])
    answer = f"Terms shuffled over sources: {shuffled.verdict}."
    metrics = [
        Metric(
            f"D11_shuffled_{c.name.replace(' ', '_')}", int(c.holds), "count", clt_scores.n_images
        )
        for c in shuffled.conditions
    ]
    causes = shuffled.agreement["projection", "mean", "total"]
    metrics += causes.metrics("D11_shuffled_causes", clt_scores.n_images)
    for name, scores in random.items():
        agreement = _agreement(clt_scores, scores)
        tau = agreement.kendall
        answer += (
            f" Kendall's tau with C of {name}: {tau.value.text('.2f')}, "
            f"97.5 % of permuted rows below {tau.floor.high:.2f}."
        )
        metrics += agreement.metrics(f"D11_{name}", clt_scores.n_images)
    more = f" ({trained_on})" if random else ""
    return Diagnostic(
        "D11",
        "What do controls give?",
        "The same CLT with the terms of every row dealt to sources by chance, judged by the same "
        f"rule; and C of CLTs of the same ViT with the entries of every weight permuted{more}; "
        f"{clt_scores.data}, N = {clt_scores.n_images}, {clt_scores.tokens} rows.",
        'Anything but "unsupported" for shuffled terms; a high tau with an untrained network, '
        "whose layers build no answer.",
        answer,
        table,
        metrics=tuple(metrics),
    )


def _agreement(a: ContributionScores, b: ContributionScores) -> RankAgreement:
    """Rank agreement of C of two transcoders on the same images, on paired draws."""
    return rank_agreement(
        a.matrix.numpy(),
        b.matrix.numpy(),
        score_draws=a.source_draws,
        effect_draws=b.source_draws,
        seed=a.seed,
    )
