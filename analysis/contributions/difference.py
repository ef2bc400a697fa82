"""Scores of one CLT less those of others, on the same images and the same bootstrap draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_clt.analysis.contributions.scores import cells, last_target_metrics
from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.style import ROW_NAMES
from vit_clt.analysis.stats.intervals import intervals
from vit_clt.choices import Reduce, ScoreKind, TokenKind
from vit_clt.errors import InputError
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vit_clt.analysis.contributions.study import ScoreStudy


@dataclass(frozen=True)
class ScoreDifferences(Study):
    """Scores of the first CLT of a `ScoreStudy` less those of each of the others.

    Tables hold all differences, figures those of the kinds that the study draws.
    """

    name = "difference"

    study: ScoreStudy

    @cached_property
    def all(self) -> dict[tuple[str, TokenKind, ScoreKind, Reduce], ScoreDifference]:
        """Every difference, by the other CLT's name, rows, kind and reduction."""
        scores, first = self.study.scores, self.study.names[0]
        return {
            (name, tokens, kind, how): ScoreDifference(scores[first, tokens, kind, how], other)
            for (name, tokens, kind, how), other in scores.items()
            if name != first
        }

    def drawn(self, name: str, tokens: TokenKind, kind: ScoreKind) -> ScoreDifference:
        """Difference from the CLT of this name, in the reduction that is drawn."""
        return self.all[name, tokens, kind, self.study.drawn(name, tokens, kind).reduce]

    def facts(self) -> Facts:
        """The facts of the scores."""
        return self.study.facts()

    def caption(self) -> str:
        """One sentence on which CLTs are compared, and on which images."""
        return (
            f"shares of the last layer's reconstruction, {self.study.names[0]} less another CLT, "
            f"95 % bootstrap paired by image, {self.study.measured_on}"
        )

    def to_frame(self) -> pd.DataFrame:
        """Every difference: a row per target and source, with its paired interval."""
        first = self.study.names[0]
        return pd.concat(
            difference.to_frame().assign(
                a=first, b=name, tokens=tokens, kind=kind, reduce=reduce, n=difference.a.n_images
            )
            for (name, tokens, kind, reduce), difference in self.all.items()
        )

    def shown(self) -> pd.DataFrame:
        """The drawn differences at the last target with their paired intervals."""
        first, *others = self.study.names
        drawn = {
            f"{name}, {ROW_NAMES[tokens]}, {kind}": self.drawn(name, tokens, kind)
            for name in others
            for kind in self.study.kinds
            for tokens in self.study.tokens
        }
        texts = {title: difference.last_target() for title, difference in drawn.items()}
        sources = max((difference.columns for difference in drawn.values()), key=len)
        columns = {title: [text.get(s, "-") for s in sources] for title, text in texts.items()}
        return pd.DataFrame({f"source layer ({first} less)": sources, **columns})

    def metrics(self) -> list[Metric]:
        """The drawn differences at the last target, with paired intervals."""
        first, *others = self.study.names
        return [
            metric
            for name in others
            for tokens in self.study.tokens
            for kind in self.study.kinds
            for metric in self.drawn(name, tokens, kind).metrics(f"{first}_less_{name}_")
        ]

    def figure(self) -> go.Figure:
        """CLS above patches for each kind; the first CLT less each of the others as columns."""
        from vit_clt.analysis.contributions.figure import difference_figure

        first, *others = self.study.names
        lines = [(t, k) for k in self.study.kinds for t in self.study.tokens]
        grid = [[self.drawn(name, *line) for name in others] for line in lines]
        return difference_figure(grid, [(first, name) for name in others])


@dataclass(frozen=True)
class ScoreDifference:
    """Scores of a less those of b for every target and source, and for skip connection and bias.

    A CLT without a skip connection is compared with one that has it: its share is 0 there.

    Raises:
        InputError: a and b differ in kind, in how they were measured, in rows, images or bootstrap
            draws.
    """

    a: SourceScores
    b: SourceScores

    def __post_init__(self) -> None:
        for name in ("kind", "reduce", "how", "tokens", "data", "n_images", "seed"):
            value, expected = getattr(self.b, name), getattr(self.a, name)
            if value != expected:
                raise InputError(f"{name} of b is {value}; expected that of a, {expected}.")
        # The variation of y of each image is equal only for the same images in the same order.
        for x, y in zip(self.a.variation, self.b.variation, strict=True):
            if x.shape != y.shape or not torch.allclose(x, y, rtol=1e-9, atol=0, equal_nan=True):
                raise InputError(
                    "b", "was scored on other images or another teacher; expected a's."
                )

    @property
    def columns(self) -> list[str]:
        """What the columns belong to, as of `ContributionScores`: those of either."""
        return max(self.a.columns, self.b.columns, key=len)

    @property
    def matrix(self) -> Float[Tensor, "target column"]:
        """The differences; NaN above the diagonal."""
        return torch.from_numpy(self._less(self.a.values.numpy(), self.b.values.numpy()))

    @cached_property
    def draws(self) -> Float[np.ndarray, "draw target column"]:
        """The differences on bootstrap draws of the images, which a and b share."""
        return self._less(self.a.draws, self.b.draws)

    @property
    def low(self) -> Float[Tensor, "target column"]:
        """Lower ends of the paired 95 % intervals."""
        return self._ends[0]

    @property
    def high(self) -> Float[Tensor, "target column"]:
        """Upper ends of the paired 95 % intervals."""
        return self._ends[1]

    @property
    def clear(self) -> Bool[Tensor, "target column"]:
        """Whether 0 lies outside the interval."""
        return (self.low > 0) | (self.high < 0)

    def to_frame(self) -> pd.DataFrame:
        """One row per (target, source): difference, low, high; source -1 is bias, -2 skip."""
        matrix = self.matrix
        return pd.DataFrame(
            {
                "target": l,
                "source": s,
                "difference": float(matrix[l, column]),
                "low": float(self.low[l, column]),
                "high": float(self.high[l, column]),
            }
            for l, s, column in sorted(cells(self.columns), key=lambda cell: cell[0])
        )

    def last_target(self) -> dict[str, str]:
        """The differences at the last target by column, with their paired intervals."""
        last = torch.stack([self.matrix[-1], self.low[-1], self.high[-1]], 1).tolist()
        texts = [f"{value:+.3f} ({low:+.3f} to {high:+.3f})" for value, low, high in last]
        return dict(zip(self.columns, texts, strict=True))

    def metrics(self, prefix: str) -> list[Metric]:
        """The differences at the last target, named {prefix}{kind}_{rows}_{source}_to_{target}."""
        name = f"{prefix}{self.a.kind}_{self.a.tokens}"
        return last_target_metrics(name, self.to_frame(), "difference", self.a.n_images)

    def _less(
        self, a: Float[np.ndarray, "*draw target _a"], b: Float[np.ndarray, "*draw target _b"]
    ) -> Float[np.ndarray, "*draw target column"]:
        # a column of zeros stands before the bias where there is no skip connection
        n, width = len(self.a.matrix), len(self.columns)
        wide = (v if v.shape[-1] == width else np.insert(v, n, 0.0, axis=-1) for v in (a, b))
        return np.subtract(*wide)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        low, high = intervals(self.draws)
        return torch.from_numpy(low), torch.from_numpy(high)
