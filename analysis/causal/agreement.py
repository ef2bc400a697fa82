"""Rank agreement of a CLT's contribution scores with causal effects of the ViT's own layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vit_clt.analysis.causal.effects import CausalEffects
from vit_clt.analysis.causal.surrogate_result import SurrogateCausality
from vit_clt.analysis.causal.targets import PATHS, Path
from vit_clt.analysis.contributions.moments import contribution_moments
from vit_clt.analysis.contributions.scores import score
from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.ranks import Agreement, RankAgreement, rank_agreement, row_agreement
from vit_clt.choices import KEPT_BYTES, ContributionKind
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go


SURROGATE = "The same ablations with the CLT in the MLPs' place"


@dataclass(frozen=True)
class CausalAgreement(Study):
    """Causal effects, and how far contribution scores of a CLT rank layers as the effects do."""

    name = "causal"

    effects: CausalEffects
    by_comparison: Mapping[str, RankAgreement]
    """Rank agreement by name, such as "centred C, total effect on y" or "depth alone, ..."."""
    l0: float
    """Active features a token row and layer, on the scored rows."""
    clt: str
    """Name of the CLT."""
    surrogate: SurrogateCausality | None = None
    """What the same ablations do in the ViT with the CLT in its MLPs' place; None without a
    readout."""

    def facts(self) -> Facts:
        """The facts of the effects, with the CLT and its L0, and the L0 of every surrogate."""
        facts = self.effects.facts()
        surrogate = {} if self.surrogate is None else {"surrogate_l0": self.surrogate.l0}
        return replace(facts, l0=self.l0, more={**facts.more, "clt": self.clt, **surrogate})

    def caption(self) -> str:
        """The caption of the effects."""
        return self.effects.caption()

    def to_frame(self) -> pd.DataFrame:
        """The table of the effects; `further_tables` has the agreement."""
        return self.effects.to_frame()

    def shown(self) -> pd.DataFrame:
        """The table of the effects made for reading."""
        return self.effects.shown()

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """The table of rank agreement, and that of the surrogate."""
        heading = f"C(s->l) against these effects on {self.effects.tokens} rows, {self._measured}"
        tables = {heading: agreement_table(self.by_comparison)}
        if self.surrogate is not None:
            tables[f"{SURROGATE}: {self.surrogate.caption()}"] = self.surrogate.shown()
            tables |= self.surrogate.further_tables()
        return tables

    def notes(self) -> Sequence[str]:
        """Sentences on the columns of the tables."""
        notes = [
            "in brackets 95 % of bootstrap draws over images; permuted: what 97.5 % of rows of "
            "C with permuted sources stay below; depth alone: deeper sources first"
        ]
        more = [] if self.surrogate is None else self.surrogate.notes()
        return [*notes, *(f"surrogate: {note}" for note in more)]

    def companions(self) -> Sequence[Study]:
        """The surrogate, which has files of its own as well."""
        return () if self.surrogate is None else (self.surrogate,)

    def metrics(self) -> list[Metric]:
        """Every effect, then every rank correlation, then the numbers of the surrogate."""
        surrogate = [] if self.surrogate is None else self.surrogate.metrics()
        ranks = [
            metric
            for name, agreement in self.by_comparison.items()
            for metric in agreement.metrics(
                name.replace(", ", "_").replace(" ", "_"), self.effects.n
            )
        ]
        renamed = [replace(metric, name=f"surrogate_{metric.name}") for metric in surrogate]
        return [*self.effects.metrics(), *ranks, *renamed]

    def figure(self) -> go.Figure:
        """The figure of the effects."""
        return self.effects.figure()

    def page(self) -> str:
        """The page of the effects, with the agreement and the surrogate at its end."""
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
        sections = [Section("Agreement with contribution scores", notes, [table])]
        if self.surrogate is not None:
            paragraphs = [self.surrogate.caption(), *self.surrogate.notes()]
            tables = [self.surrogate.shown(), *self.surrogate.further_tables().values()]
            sections.append(Section(SURROGATE, paragraphs, tables, [self.surrogate.figure()]))
        return causal_page(self.effects, sections)

    @property
    def _measured(self) -> str:
        return f"CLT {self.clt}, L0 = {self.l0:.1f} a token on these rows"


def causal_agreement(
    effects: CausalEffects, scores: Sequence[SourceScores], clt_name: str = "CLT"
) -> CausalAgreement:
    """Compare scores of a CLT's sources, and a ranking by depth alone, with causal effects.

    Args:
        effects: effects in the model the CLT was trained on.
        scores: scores of one or several kinds, C(s->l) or E(s->l), of the same images and rows.
        clt_name: name of the CLT.

    Raises:
        InputError: there are no scores, or they are of other rows or images than the effects.
    """
    if not scores:
        raise InputError("scores", "is empty; expected at least one kind.")
    by_comparison = score_agreement(effects, scores)
    for path in PATHS:
        by_comparison[f"depth alone, {path} effect on y"] = depth_agreement(effects, path)
    return CausalAgreement(effects, by_comparison, scores[0].l0, clt_name)


def clt_agreement(
    effects: CausalEffects,
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    clt_name: str = "CLT",
    *,
    kept_bytes: int = KEPT_BYTES,
    progress: bool = False,
) -> CausalAgreement:
    """`causal_agreement` with the centred and the projection scores of a CLT.

    Args:
        effects: effects in `vit` on `data`.
        vit: the model.
        clt: its transcoder.
        data: the images.
        clt_name: name of the CLT.
        kept_bytes: the most bytes of codes that are kept between passes over the images.
        progress: show a progress bar.
    """
    moments = contribution_moments(vit, clt, data, kept_bytes=kept_bytes, progress=progress)
    kinds: tuple[ContributionKind, ...] = ("centred", "projection")
    scores = [score(moments, tokens=effects.tokens, kind=kind) for kind in kinds]
    return causal_agreement(effects, scores, clt_name)


def score_agreement(
    effects: CausalEffects, scores: Sequence[SourceScores]
) -> dict[str, RankAgreement]:
    """Rank agreement of each kind of score with total and direct effects, by comparison.

    Targets are compared over the sources below them. Where the effects have readings, C(s->L-1) is
    also compared with the rise in loss, over all s; of E it is E(s->output). Intervals resample the
    images of the effects; the scores stay fixed.

    Args:
        effects: effects in the model the CLT was trained on.
        scores: scores of the same images and rows.

    Raises:
        InputError: the scores are of other rows or images than the effects.
    """
    by_comparison = {}
    for one in scores:
        measured = (one.tokens, one.data, one.n_images)
        expected = (effects.tokens, effects.data, effects.n)
        if measured != expected:
            raise InputError(
                "scores",
                f"were measured on {measured[0]} rows of {measured[1]} (N = {measured[2]}); "
                f"expected {expected[0]} of {expected[1]} (N = {expected[2]}), as the effects.",
            )
        matrix = one.matrix.numpy()
        for path in PATHS:
            by_comparison[f"{one.title}, {path} effect on y"] = rank_agreement(
                matrix,
                effects.matrix(path),
                effect_draws=effects.draws(path),
                seed=effects.seed,
            )
        if effects.readings is not None and one.on_output is not None:
            for path in PATHS:
                rise, draws = effects.loss_rise(path)
                by_comparison[f"{one.title}, {path} effect on loss"] = row_agreement(
                    one.on_output, rise, effect_draws=draws, seed=effects.seed
                )
    return by_comparison


def depth_agreement(effects: CausalEffects, path: Path) -> RankAgreement:
    """Rank agreement of depth alone (deeper sources first) with effects on y, without any CLT."""
    n = effects.n_layers
    return rank_agreement(
        np.tile(np.arange(float(n)), (n, 1)),
        effects.matrix(path),
        effect_draws=effects.draws(path),
        seed=effects.seed,
    )


def agreement_table(agreement: Mapping[str, RankAgreement]) -> pd.DataFrame:
    """Rank agreement as a table of text, one row per comparison."""
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
