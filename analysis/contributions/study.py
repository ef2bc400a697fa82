"""Every score of one or several CLTs of one teacher on the same images, and the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_clt.analysis.contributions.figure import contribution_figure, difference_figure
from vit_clt.analysis.contributions.moments import compared_moments
from vit_clt.analysis.contributions.scores import (
    ALL_SCORES,
    ContributionScores,
    check_chosen,
    score,
)
from vit_clt.analysis.reporting.style import ROW_NAMES
from vit_clt.analysis.stats.intervals import intervals
from vit_clt.choices import Reduce, ScoreKind, TokenKind
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, token_rows
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder

Key = tuple[str, TokenKind, ScoreKind, Reduce]
"""CLT, rows, kind and reduction."""


@dataclass(frozen=True)
class ScoreStudy:
    """Scores by CLT, rows, kind and reduction; tables hold all, figures the kinds asked for."""

    scores: dict[Key, ContributionScores]
    names: list[str]
    """The CLTs'; differences are the first less each of the others."""
    tokens: list[TokenKind]
    kinds: list[ScoreKind]
    """Drawn, each in its first reduction."""

    @property
    def first(self) -> ContributionScores:
        """The first score drawn, for what all have in common."""
        return self.drawn(self.names[0], self.tokens[0], self.kinds[0])

    def drawn(self, name: str, tokens: TokenKind, kind: ScoreKind) -> ContributionScores:
        """One CLT's score in the reduction that is drawn."""
        return self.scores[name, tokens, kind, dict(reversed(ALL_SCORES))[kind]]

    @cached_property
    def differences(self) -> dict[Key, ScoreDifference]:
        """The first CLT less each of the others, by the other's name."""
        return {
            (name, tokens, kind, how): ScoreDifference(
                self.scores[self.names[0], tokens, kind, how], scores
            )
            for (name, tokens, kind, how), scores in self.scores.items()
            if name != self.names[0]
        }

    def to_frame(self) -> pd.DataFrame:
        """Every score of every CLT: a row per target and source, with its interval and facts."""
        return pd.concat(
            scores.to_frame().assign(
                clt=name, tokens=tokens, kind=kind, reduce=reduce, l0=scores.l0, n=scores.n_images
            )
            for (name, tokens, kind, reduce), scores in self.scores.items()
        )

    def difference_frame(self) -> pd.DataFrame:
        """Every difference: a row per target and source, with its paired interval."""
        return pd.concat(
            each.to_frame().assign(
                a=self.names[0], b=name, tokens=tokens, kind=kind, reduce=reduce, n=each.a.n_images
            )
            for (name, tokens, kind, reduce), each in self.differences.items()
        )

    def last_layer(self) -> pd.DataFrame:
        """The drawn scores of the last target, a row per CLT, rows and kind, for reading."""
        cells = []
        for name, tokens, kind in self._drawn:
            shares = self.drawn(name, tokens, kind).matrix[-1].tolist()
            which = [name] if len(self.names) > 1 else []
            cells.append(
                (", ".join([*which, ROW_NAMES[tokens], kind]), *(f"{v:.3f}" for v in shares))
            )
        return pd.DataFrame(cells, columns=["source layer", *map(str, range(len(cells[0]) - 1))])

    def last_layer_differences(self) -> pd.DataFrame:
        """The drawn differences at the last target with their paired intervals, for reading."""
        first, *others = self.names
        columns = {
            f"{name}, {ROW_NAMES[tokens]}, {kind}": [
                f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
                for row in self._difference(name, tokens, kind).to_frame().itertuples()
                if row.target == len(self.first.matrix) - 1
            ]
            for name in others
            for kind in self.kinds
            for tokens in self.tokens
        }
        sources = [*map(str, range(len(self.first.matrix))), "bias"]
        return pd.DataFrame({f"source layer ({first} less)": sources, **columns})

    def metrics(self) -> list[Metric]:
        """The drawn scores of the last target and their differences, with intervals.

        Names: {kind}_{rows}_{source}_to_{target}, behind the CLT's where there are several.
        """
        found = []
        for name, tokens, kind in self._drawn:
            scores = self.drawn(name, tokens, kind)
            prefix = f"{name}_" if len(self.names) > 1 else ""
            found += _metrics(f"{prefix}{kind}_{tokens}", scores.to_frame(), "score", scores)
            if name != self.names[0]:
                each = self._difference(name, tokens, kind)
                prefix = f"{self.names[0]}_less_{name}_{kind}_{tokens}"
                found += _metrics(prefix, each.to_frame(), "difference", scores)
        return found

    def figure(self) -> go.Figure:
        """CLS above patches; score kinds as columns, or, for each kind, the CLTs."""
        if len(self.names) == 1:
            grid = [[self.drawn(self.names[0], t, k) for k in self.kinds] for t in self.tokens]
            return contribution_figure(grid)
        lines = [(t, k) for k in self.kinds for t in self.tokens]
        grid = [[self.drawn(name, *line) for name in self.names] for line in lines]
        return contribution_figure(grid, self.names)

    def difference_figure(self) -> go.Figure:
        """CLS above patches for each kind; the first CLT less each of the others as columns."""
        first, *others = self.names
        lines = [(t, k) for k in self.kinds for t in self.tokens]
        grid = [[self._difference(name, *line) for name in others] for line in lines]
        return difference_figure(grid, [(first, name) for name in others])

    def _difference(self, name: str, tokens: TokenKind, kind: ScoreKind) -> ScoreDifference:
        return self.differences[name, tokens, kind, self.drawn(name, tokens, kind).reduce]

    @property
    def _drawn(self) -> list[tuple[str, TokenKind, ScoreKind]]:
        return [(n, t, k) for n in self.names for t in self.tokens for k in self.kinds]


def score_study(
    vit: HookedViT,
    clts: Mapping[str, CrossLayerTranscoder],
    data: ImageData,
    *,
    tokens: Sequence[TokenKind] = ("cls", "patch"),
    kinds: Sequence[ScoreKind] = ("projection", "centred"),
    label: int | str | None = None,
    image: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ScoreStudy:
    """Every score of every CLT, from passes over the images that all of them share.

    Args:
        vit: the teacher.
        clts: its transcoders by name.
        data: the images.
        tokens: rows scored, one above the other in figures.
        kinds: what is drawn; `centred` is left out where there is one image in all.
        label: score the images of this class alone, as `score`.
        image: score this image alone, by its row.
        seed: of the bootstrap, whose draws all scores share.
        progress: show a progress bar.

    Raises:
        InputError: as `contribution_scores`, or no kind to draw.
    """
    for each in tokens:
        token_rows(each, vit.cfg.has_cls)
    check_chosen(label, image, data.class_names, len(data))
    defined = [(kind, how) for kind, how in ALL_SCORES if kind != "centred" or len(data) > 1]
    shown = [kind for kind in kinds if kind in dict(defined)]
    if not shown:
        found = f'"{kinds[0]}"' if kinds else "empty"
        raise InputError("kind", f"is {found}; expected one that {len(data)} images define.")
    moments = compared_moments(vit, list(clts.values()), data, progress=progress)
    scores: dict[Key, ContributionScores] = {
        (name, rows, kind, how): score(
            of_clt, tokens=rows, kind=kind, reduce=how, label=label, image=image, seed=seed
        )
        for name, of_clt in zip(clts, moments, strict=True)
        for rows in tokens
        for kind, how in defined
    }
    return ScoreStudy(scores, list(clts), list(tokens), shown)


def _metrics(
    name: str, frame: pd.DataFrame, column: str, scores: ContributionScores
) -> list[Metric]:
    last = len(scores.matrix) - 1
    return [
        Metric(
            f"{name}_{row['source']:.0f}_to_{last}",
            row[column],
            "fraction",
            scores.n_images,
            row["low"],
            row["high"],
        )
        for _, row in frame.query(f"target == {last} and source >= 0").iterrows()
    ]


@dataclass(frozen=True)
class ScoreDifference:
    """C_a - C_b cell by cell; the last column of every matrix is the bias.

    Raises:
        InputError: the two are scores of different kinds, rows or images, or of other draws.
    """

    a: ContributionScores
    b: ContributionScores

    def __post_init__(self) -> None:
        for name in ("kind", "reduce", "tokens", "data", "n_images", "seed"):
            found, expected = getattr(self.b, name), getattr(self.a, name)
            if found != expected:
                raise InputError(f"{name} of b is {found}; expected that of a, {expected}.")
        # the teacher's own y, image by image: equal only for the same images in the same order
        of_a, of_b = ((s.chosen, s.moments.variation["all"]) for s in (self.a, self.b))
        for x, y in zip(of_a, of_b, strict=True):
            if x.shape != y.shape or not torch.allclose(x, y, rtol=1e-9, atol=0):
                raise InputError(
                    "b", "was scored on other images or another teacher; expected a's."
                )

    @property
    def matrix(self) -> Float[Tensor, "target source_and_bias"]:
        """C_a - C_b; NaN above the diagonal."""
        of_a, of_b = (torch.cat([s.matrix, s.bias[:, None]], 1) for s in (self.a, self.b))
        return of_a - of_b

    @cached_property
    def draws(self) -> Float[np.ndarray, "draw target source_and_bias"]:
        """The difference on the same bootstrap draw of the images for both."""
        return self.a.draws - self.b.draws

    @property
    def low(self) -> Float[Tensor, "target source_and_bias"]:
        """Lower ends of the paired 95 % intervals."""
        return self._ends[0]

    @property
    def high(self) -> Float[Tensor, "target source_and_bias"]:
        """Upper ends of the paired 95 % intervals."""
        return self._ends[1]

    @property
    def clear(self) -> Bool[Tensor, "target source_and_bias"]:
        """Whether the interval leaves 0 out."""
        return (self.low > 0) | (self.high < 0)

    def to_frame(self) -> pd.DataFrame:
        """One row per (target, source): difference, low, high; `source` is -1 for the bias."""
        n = len(self.matrix)
        cells = [(l, s) for l in range(n) for s in [*range(l + 1), -1]]
        return pd.DataFrame(
            {
                "target": l,
                "source": s,
                "difference": float(self.matrix[l, s]),
                "low": float(self.low[l, s]),
                "high": float(self.high[l, s]),
            }
            for l, s in cells
        )

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        low, high = intervals(self.draws)
        return torch.from_numpy(low), torch.from_numpy(high)
