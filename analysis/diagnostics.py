"""The audit's diagnostics: each asks one question of a CLT's attribution and says what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from vit_clt.analysis.contributions import ContributionScores
from vit_clt.analysis.evidence import Evidence
from vit_clt.analysis.fidelity import Fidelity
from vit_clt.analysis.rank_agreement import rank_agreement, row_agreement
from vit_clt.analysis.readings import Measure
from vit_clt.analysis.reconstruction import Reconstruction
from vit_clt.analysis.ridge import RidgeFit
from vit_clt.analysis.shortcut import shortcut_example
from vit_clt.metrics import Metric


@dataclass(frozen=True)
class Diagnostic:
    """One question, what was measured, what a bad answer looks like, and the answer."""

    code: str
    """"D1" to "D11", as docs/definitions.md numbers them."""
    question: str
    measured: str
    bad: str
    found: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    figures: tuple[go.Figure, ...] = ()
    metrics: tuple[Metric, ...] = ()


def per_layer_rivals(found: Fidelity) -> Diagnostic:
    """D1: does a per-layer transcoder, which can read no other depth, do as well?"""
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
    table = found.frame[list(columns)].rename(columns=columns)
    rows = [
        f"{r.name}: R² CLS {r.r2_cls:.3f}, patches {r.r2_patch:.3f}, loss {r.loss:.4f} nats"
        for r in found.frame.itertuples()
    ]
    return Diagnostic(
        "D1",
        "Is reading across layers needed at all?",
        f"Transcoders in the place of every MLP, {found.tokens} rows, stream inputs; "
        f"{found.data}, N = {found.n}. Unaltered {100 * found.original:.2f} % / "
        f"{found.original.loss:.4f} nats, MLP rows at their mean {100 * found.floor_mean:.2f} % / "
        f"{found.floor_mean.loss:.4f}.",
        "A per-layer transcoder does as well: terms from other depths are then a choice of the "
        "fit, not something the model's outputs need.",
        "; ".join(rows) + ".",
        table,
        metrics=tuple(found.metrics()),
    )


def causes(evidence: Evidence, figures: tuple[go.Figure, ...]) -> Diagnostic:
    """D2: does C rank layers as ablating the ViT's own MLPs does?"""
    table = pd.DataFrame(
        {
            "score": kind,
            "ablation": fill,
            "effect": path,
            "Spearman": a.spearman.value,
            "low": a.spearman.low,
            "high": a.spearman.high,
            "permuted rows": a.spearman.floor,
            "Kendall": a.kendall.value,
            "targets": a.n_targets,
        }
        for (kind, fill, path), a in evidence.agreement.items()
    )
    score = evidence.scores["projection"]
    by_depth = evidence.depth_agreement.spearman
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
        "An interval that holds 0; or a correlation no higher than that of depth alone, which "
        f"needs no CLT ({by_depth.value:.2f}, {by_depth.low:.2f} to {by_depth.high:.2f}).",
        evidence.conditions[0].reason + ".",
        table,
        figures,
        tuple(metrics),
    )


def floors(evidence: Evidence) -> Diagnostic:
    """D3: is there an effect to be explained?"""
    readings = evidence.sets["zero"].readings
    rows, metrics = [], []
    measures: tuple[tuple[Measure, str], ...] = (("top1", "fraction"), ("loss", "nats"))
    for measure, unit in measures:
        for name in ("floor_mean", "floor_zero", "full"):
            value, low, high = readings.difference(name, "original", measure)
            rows.append((name, measure, unit, value, low, high))
            metrics.append(
                Metric(f"D3_{name}_minus_original_{measure}", value, unit, readings.n, low, high)
            )
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
        "Intervals that hold 0: these rows hardly matter, and no ablation of terms can say much.",
        f"At its mean: loss {loss[0]:+.4f} nats ({loss[1]:+.4f} to {loss[2]:+.4f}), accuracy "
        f"{100 * top1[0]:+.2f} points ({100 * top1[1]:+.2f} to {100 * top1[2]:+.2f}).",
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
        f"at zero; {sets.data}, N = {sets.readings.n}; ranked by loss.",
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
        lead, low, high = sets.readings.difference("last", sets.chosen.name, "loss")
        rows.append((fill, sets.chosen.rank["loss"], len(sets.sets), lead, low, high))
        n = sets.readings.n
        metrics.append(Metric(f"D5_{fill}_rank_loss", sets.chosen.rank["loss"], "count", n))
        metrics.append(Metric(f"D5_{fill}_lead_over_last", lead, "nats", n, low, high, 0.0))
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


def ridge(evidence: Evidence, fit: RidgeFit, scores: ContributionScores) -> Diagnostic:
    """D6: does a dense linear readout split y_l over depths in the same way?"""
    own = evidence.scores[scores.kind]
    agreement = rank_agreement(
        own.matrix.numpy(),
        scores.matrix.numpy(),
        score_draws=own.draws[:, :, :-1],
        effect_draws=scores.draws[:, :, :-1],
        seed=own.seed,
    )
    last = row_agreement(own.matrix[-1].numpy(), scores.matrix[-1].numpy(), seed=own.seed)
    table = pd.DataFrame(
        {
            "source": range(len(own.matrix)),
            "C of the CLT": own.matrix[-1].tolist(),
            "C of ridge": scores.matrix[-1].tolist(),
        }
    )
    s = agreement.spearman
    return Diagnostic(
        "D6",
        "Does a dense linear readout tell the same story?",
        f"y_l from x_0..x_l by ridge regression, fitted on {fit.n_images} other images, R² "
        f"{np.mean(fit.r2):.3f} as a mean over layers on images held out from the fit; its C by "
        f"the same formula ({own.kind}); table: shares of the last layer.",
        "The same ranking: C then says where y_l is linearly readable, and neither sparsity nor "
        "features had a part in it.",
        f"Mean Spearman with ridge's C, off the diagonal, {s.value:.2f} ({s.low:.2f} to "
        f"{s.high:.2f}); permuted rows {s.floor:.2f}; last layer, all sources, "
        f"{last.spearman.value:.2f}.",
        table,
        metrics=(
            *agreement.metrics("D6_ridge", own.n_images),
            Metric("D6_ridge_r2", float(np.mean(fit.r2)), "fraction", fit.n_images, floor=0.0),
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
            Metric(f"D7_cross_layer_{r.layer}", r.cross_layer, "fraction", n)
            for r in rows.itertuples()
        ),
    )


def variants(own: ContributionScores, others: Mapping[str, ContributionScores]) -> Diagnostic:
    """D8: do other seeds, sparsifiers and initialisations give the same ranking?"""
    rows, metrics = [], []
    for name, scores in others.items():
        agreement = rank_agreement(
            own.matrix.numpy(),
            scores.matrix.numpy(),
            score_draws=own.draws[:, :, :-1],
            effect_draws=scores.draws[:, :, :-1],
            seed=own.seed,
        )
        last = row_agreement(own.matrix[-1].numpy(), scores.matrix[-1].numpy(), seed=own.seed)
        tau = agreement.kendall
        rows.append((name, tau.value, tau.low, tau.high, tau.floor, last.kendall.value, scores.l0))
        metrics += agreement.metrics(f"D8_{name}", own.n_images)
    columns = ["CLT", "Kendall, rows", "low", "high", "permuted", "Kendall, last row", "L0"]
    table = pd.DataFrame(rows, columns=columns)
    lowest = table.loc[table["Kendall, rows"].idxmin()]
    return Diagnostic(
        "D8",
        "Would another training tell the same story?",
        f"Kendall's tau between rows of C ({own.kind}, {own.tokens} rows, off the diagonal) of "
        f"this CLT and of others of the same ViT; {own.data}, N = {own.n_images}.",
        "Low tau between seeds: the ranking is the training's, not the model's. Low tau between "
        "sparsifiers or initialisations: it is the method's.",
        f"Lowest: {lowest['CLT']} with {lowest['Kendall, rows']:.2f} "
        f"({lowest['low']:.2f} to {lowest['high']:.2f}).",
        table,
        metrics=tuple(metrics),
    )


def shortcut() -> Diagnostic:
    """D10: the failure that no reconstruction error shows, on hand-set weights."""
    case = shortcut_example()
    rows = []
    for name in ("deep", "shortcut"):
        clt = getattr(case, name)
        codes = clt.encode(case.x)
        terms = clt.contributions(codes, target=1)
        error = float((clt.decode(codes) - case.y).abs().max())
        share = float(terms[1].square().sum() / case.y[1].square().sum())
        rows.append((name, error, float(codes.l0().sum(0).double().mean()), share))
    table = pd.DataFrame(rows, columns=["CLT", "largest error", "L0 an input", "share of C(1→1)"])
    left = float(case.y_without_mlp_0.abs().sum())
    return Diagnostic(
        "D10",
        "Can a CLT without any error be wrong about mechanism?",
        "MLP_0 computes a AND b, MLP_1 (a AND b) AND c; hand-set weights, all 8 inputs, two CLTs.",
        "It can, always: keep this case in mind whatever the other diagnostics say.",
        f"Both rebuild every output exactly. One reads y_1 at depth 1, the other, sparser, at "
        f"depth 0; without MLP_0 the model's y_1 is {left:g} everywhere.",
        table,
    )


def controls(
    evidence: Evidence, shuffled: Evidence, random: Mapping[str, ContributionScores]
) -> Diagnostic:
    """D11: what do terms dealt by chance, and an untrained ViT, give?"""
    own = evidence.scores["projection"]
    rows = [(c.name, c.holds, c.reason) for c in shuffled.conditions]
    table = pd.DataFrame(rows, columns=["condition", "holds for shuffled terms", "reason"])
    found = f"Terms shuffled over sources: {shuffled.verdict}."
    metrics = []
    for name, scores in random.items():
        agreement = rank_agreement(own.matrix.numpy(), scores.matrix.numpy(), seed=own.seed)
        tau = agreement.kendall
        found += f" Kendall's tau with C of {name}: {tau.value:.2f}."
        metrics += agreement.metrics(f"D11_{name}", own.n_images)
    return Diagnostic(
        "D11",
        "What do controls give?",
        "The same CLT with the terms of every row dealt to sources by chance, judged by the same "
        "rule; and C of CLTs of the same ViT with random weights.",
        'Anything but "unsupported" for shuffled terms; a high tau with an untrained network, '
        "whose layers build no answer.",
        found,
        table,
        metrics=tuple(metrics),
    )
