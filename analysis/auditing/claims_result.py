"""The result of `vit_clt.analysis.auditing.claims.claims`: what C and E claim, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from vit_clt.analysis.auditing.evidence import Condition, account
from vit_clt.analysis.causal.effects import CausalEffects
from vit_clt.analysis.contributions.scores import ContributionScores
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.silencing.scores import EffectScores
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

ClaimName = Literal["reads", "acts"]
BESIDE_DEPTH = ("above depth", "zero fill", "mean fill")
"""The parts that compare a score with depth alone: its ranking, and the k deepest sources."""


@dataclass(frozen=True)
class Claim:
    """One claim, with the parts of its test."""

    name: ClaimName
    score: Literal["C", "E"]
    parts: Sequence[Condition]
    numbers: Sequence[Metric]
    """The numbers that decide the parts, named after the claim."""
    n: int
    """Number of images that were measured on."""

    @property
    def supported(self) -> bool:
        """Whether all parts hold."""
        return all(part.holds for part in self.parts)

    @property
    def verdict(self) -> str:
        """The verdict in words, as "acts: unsupported (output)", with the parts that fail."""
        failed = [part.name for part in self.parts if not part.holds]
        if not failed:
            return f"{self.name}: supported"
        text = f"{self.name}: unsupported ({', '.join(failed)})"
        return text if set(failed) - set(BESIDE_DEPTH) else f"{text}, no better than depth"

    def metrics(self) -> list[Metric]:
        """Every part as 0 or 1, then the numbers."""
        parts = [
            Metric(f"{self.name}_{part.name.replace(' ', '_')}", int(part.holds), "count", self.n)
            for part in self.parts
        ]
        return [*parts, *self.numbers]


@dataclass(frozen=True, kw_only=True)
class Claims(Study):
    """What C and E claim of one CLT, whether the claims hold, and the matrices behind them."""

    name = "claims"

    reads: Claim
    acts: Claim
    scores: ContributionScores
    """Projection C(s->l), of one half of the images."""
    effects: EffectScores
    """E(s->l) and E(s->output), of images of the same half."""
    truth: CausalEffects
    """Effects of the ViT's own MLPs, on images of the other half."""
    k: int
    """Number of sources kept at the target."""
    target: int
    clt: str
    """Name of the CLT."""
    weights_sha256: str
    """`weights_sha256` of the CLT, by which other pages know that these claims are its own."""
    data: str
    split: str | None
    n: int
    """Number of images, both halves together."""

    @property
    def accounts(self) -> list[str]:
        """Which parts of each claim held and which failed."""
        return [f"{claim.name}, {account(claim.parts)}" for claim in (self.reads, self.acts)]

    @property
    def verdicts(self) -> list[str]:
        """The two verdicts in words."""
        return [self.reads.verdict, self.acts.verdict]

    @cached_property
    def source_error(self) -> Interval:
        """Median over sources s of ||E(s->.) - effects|| / ||effects||, over l > s.

        Predicting no effect has 1. It is no part of a verdict: ranks may be right where sizes are
        not, and over all cells at once the source with the largest effects would hide the others.
        The interval is over images.
        """
        scores, effects = self.effects.matrix.numpy(), self.truth.matrix("total")
        defined = np.tril(np.isfinite(scores) & np.isfinite(effects), -1)
        sources = np.flatnonzero((defined & (effects > 0)).any(0))

        def error(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
            found, truth = (np.where(defined, each, 0)[:, :, sources] for each in (found, truth))
            sizes = np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth, axis=1)
            return np.asarray(np.median(sizes, axis=1))

        [value] = error(scores[None], effects[None])
        return Interval.of(float(value), error(self.effects.draws, self.truth.draws("total")))

    def facts(self) -> Facts:
        """The images of each part, the fills, and the verdicts."""
        return Facts(
            self.data,
            self.n,
            self.scores.tokens,
            "teacher; stream for E",
            self.scores.l0,
            split=self.split,
            fill="mean; zero and mean for the kept sources",
            seed=self.scores.seed,
            more={
                "clt": self.clt,
                "weights_sha256": self.weights_sha256,
                "n_images": self.n,
                "readout": self.truth.readout,
                "target": self.target,
                "k": self.k,
                "claims": self.verdicts,
                "n_by_part": {
                    "C": self.scores.n_images,
                    "its tests": self.reads.n,
                    "E": self.effects.n_images,
                    "the ViT's effects": self.truth.n,
                },
            },
        )

    def caption(self) -> str:
        """The CLT, the images, rows, L0 and seed."""
        return (
            f"{self.clt}, {self.data}, N = {self.n} in two halves, {self.scores.tokens} rows, "
            f"L0 {self.scores.l0:.1f}, k {self.k} at layer {self.target}, readout: "
            f"{self.truth.readout}, seed {self.scores.seed}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per number of `metrics`."""
        return pd.DataFrame(map(asdict, self.metrics()))

    def shown(self) -> pd.DataFrame:
        """One row per part of a claim: whether it holds, and the numbers that decide it."""
        return pd.DataFrame(
            {
                "claim": f"{claim.score} {claim.name}",
                "part": part.name,
                "holds": "yes" if part.holds else "no",
                "measured": part.reason,
                "N": claim.n,
            }
            for claim in (self.reads, self.acts)
            for part in claim.parts
        )

    def notes(self) -> list[str]:
        """The verdicts, and how far E lies from the effects it claims."""
        return [
            *self.verdicts,
            *self.accounts,
            "error of E(s→l) against the effects of the ViT's own MLPs, relative to their size, "
            f"median over sources: {self.source_error.text('.2f')} (predicting no effect: 1)",
        ]

    def metrics(self) -> list[Metric]:
        """The metrics of both claims; their names begin with "reads_" and "acts_"."""
        error = self.source_error.metric("acts_source_error", "fraction", self.truth.n, floor=1.0)
        return [*self.reads.metrics(), *self.acts.metrics(), error]

    def figure(self) -> go.Figure:
        """C, E and the effects of the ViT's own MLPs on one scale; below, those on the loss."""
        from vit_clt.analysis.auditing.claims_figure import claims_figure

        return claims_figure(self)
