"""Contribution scores of a CLT against the causal effects of the ViT's own layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vit_clt.analysis.causal.effects import CausalEffects
from vit_clt.analysis.causal.targets import PATHS, Path
from vit_clt.analysis.contributions.scores import ContributionScores
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.ranks import Agreement, RankAgreement, rank_agreement, row_agreement
from vit_clt.errors import InputError
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class CausalAgreement(Study):
    """Causal effects, and how far contribution scores of a CLT rank layers as they do."""

    name = "causal"

    effects: CausalEffects
    by_comparison: Mapping[str, RankAgreement]
    """E.g. "centred C, total effect on y" (`score_agreement`), or "depth alone, ..."."""
    l0: float
    """Active features a token and layer, on the scored rows."""
    clt: str
    """What the CLT is called."""

    def facts(self) -> Facts:
        """Those of the effects, with the CLT and its L0."""
        facts = self.effects.facts()
        return replace(facts, l0=self.l0, more={**facts.more, "clt": self.clt})

    def caption(self) -> str:
        """That of the effects."""
        return self.effects.caption()

    def to_frame(self) -> pd.DataFrame:
        """The effects."""
        return self.effects.to_frame()

    def shown(self) -> pd.DataFrame:
        """The effects, one row per set of layers."""
        return self.effects.shown()

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """How far the scores agree."""
        heading = f"C(s->l) against these effects on {self.effects.tokens} rows, {self._measured}"
        return {heading: agreement_table(self.by_comparison)}

    def notes(self) -> Sequence[str]:
        """What stands in the columns of agreement."""
        return [
            "in brackets 95 % of bootstrap draws over images; permuted: what 97.5 % of rows of "
            "C with permuted sources stay below; depth alone: deeper sources first"
        ]

    def metrics(self) -> list[Metric]:
        """Every effect, then every rank correlation."""
        return self.effects.metrics() + [
            metric
            for name, agreement in self.by_comparison.items()
            for metric in agreement.metrics(
                name.replace(", ", "_").replace(" ", "_"), self.effects.n
            )
        ]

    def figure(self) -> go.Figure:
        """The effects."""
        return self.effects.figure()

    def page(self) -> str:
        """The page of the effects, with the agreement at its end."""
        from vit_clt.analysis.causal.page import causal_page
        from vit_clt.analysis.reporting.page import Section

        notes = [
            f"{self._measured}. Rank correlations of C(s→l) with the effect of s on l over the "
            "sources s < l, mean over targets with at least three; for the output, C(s→L−1) with "
            "the rise in loss over all s. The floor shuffles every row of C over its sources. C "
            "says from which depth y_l can be sparsely read: it need not agree. Depth alone has "
            "the layer's number in C's place.",
            "Intervals: 95 % bootstrap over images of the effects; C is held at its value.",
        ]
        table = agreement_table(self.by_comparison)
        return causal_page(
            self.effects, [Section("Agreement with contribution scores", notes, [table])]
        )

    @property
    def _measured(self) -> str:
        return f"CLT {self.clt}, L0 = {self.l0:.1f} a token on these rows"


def causal_agreement(
    effects: CausalEffects, scores: Sequence[ContributionScores], clt: str = "CLT"
) -> CausalAgreement:
    """Scores of a CLT, called `clt`, against effects; beside them what ranking by depth gives.

    Raises:
        InputError: no scores, or scores of other rows or images than the effects.
    """
    if not scores:
        raise InputError("scores", "is empty; expected at least one kind.")
    found = score_agreement(effects, scores)
    for path in PATHS:
        found[f"depth alone, {path} effect on y"] = depth_agreement(effects, path)
    return CausalAgreement(effects, found, scores[0].l0, clt)


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


def agreement_table(agreement: Mapping[str, RankAgreement]) -> pd.DataFrame:
    """One row per comparison, as text."""
    from vit_clt.analysis.reporting.style import three_digits

    return pd.DataFrame(
        {
            "compared": name,
            "Spearman": _plain(a.spearman.value),
            "permuted": _floor_text(a.spearman),
            "p": three_digits(a.spearman.p),
            "Kendall": _plain(a.kendall.value),
            "targets": a.n_targets,
        }
        for name, a in agreement.items()
    )


def _floor_text(a: Agreement) -> str:
    return "undefined" if isnan(a.floor) else f"{a.floor.low:.3f} to {a.floor.high:.3f}"


def _plain(value: Interval) -> str:
    return "undefined" if isnan(value) else value.text(".3f")
