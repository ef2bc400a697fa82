"""All scores of one or several CLTs of one teacher on the same images, and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import pandas as pd

from vit_clt.analysis.contributions.difference import ScoreDifferences
from vit_clt.analysis.contributions.moments import compared_moments
from vit_clt.analysis.contributions.scored_images import check_image_choice
from vit_clt.analysis.contributions.scores import (
    ALL_SCORES,
    MEANING,
    ContributionScores,
    score,
)
from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.style import ROW_NAMES
from vit_clt.choices import KEPT_BYTES, MAX_GROUPS, Reduce, ScoreKind, TokenKind
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, token_rows
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

Key = tuple[str, TokenKind, ScoreKind, Reduce]
"""Name of the CLT, token rows, kind and reduction."""


@dataclass(frozen=True)
class ScoreStudy(Study):
    """Scores by CLT, rows, kind and reduction; tables hold all, figures only `kinds`."""

    name = "contributions"

    scores: dict[Key, SourceScores]
    names: list[str]
    """Names of the CLTs; differences are the first less each of the others."""
    tokens: list[TokenKind]
    kinds: list[ScoreKind]
    """Kinds that are drawn, each in its first reduction."""

    @cached_property
    def difference(self) -> ScoreDifferences:
        """The scores of the first CLT less those of each of the others."""
        return ScoreDifferences(self)

    @property
    def first(self) -> ContributionScores:
        """The first contribution score, for what all scores have in common."""
        return next(s for s in self.scores.values() if isinstance(s, ContributionScores))

    def drawn(self, name: str, tokens: TokenKind, kind: ScoreKind) -> SourceScores:
        """Scores of one CLT in the reduction that is drawn."""
        reduced: dict[ScoreKind, Reduce] = {"effect": "ratio_of_means"}
        return self.scores[name, tokens, kind, (reduced | dict(reversed(ALL_SCORES)))[kind]]

    @property
    def measured_on(self) -> str:
        """Images, trajectory and L0, for captions."""
        first, tokens = self.first, self.tokens[0]
        l0 = ", ".join(f"{self.drawn(n, tokens, first.kind).l0:.1f}" for n in self.names)
        return (
            f"{first.data}, N = {first.n_images}, teacher trajectory, L0 {l0} "
            f"({ROW_NAMES[tokens]}); intervals in the CSV: 95 % bootstrap over "
            f"{first.moments.groups.text}, seed {first.seed}"
        )

    def facts(self) -> Facts:
        """What all scores have in common, and L0 by CLT and rows."""
        first = self.first
        l0: dict[str, dict[str, float]] = {
            name: {tokens: self.drawn(name, tokens, first.kind).l0 for tokens in self.tokens}
            for name in self.names
        }
        drawn = [self.drawn(*key) for key in self._drawn]
        excluded = sum(s.excluded.sum() for s in drawn if isinstance(s, ContributionScores))
        return Facts(
            data=first.data,
            n=first.n_images,
            tokens=" ".join(self.tokens),
            trajectory="teacher",
            l0=l0 if len(self.names) > 1 else l0[self.names[0]],
            split=first.moments.split,
            seed=first.seed,
            more={
                "clts": self.names,
                "excluded_rows": int(excluded),
                **first.moments.groups.facts(),
            },
        )

    def caption(self) -> str:
        """One sentence on what `shown` lists, and on which images."""
        effects = ", and effects on it (shares of its variance)" if "effect" in self.kinds else ""
        return f"shares of the last layer's reconstruction{effects}, {self.measured_on}"

    def to_frame(self) -> pd.DataFrame:
        """Every score of every CLT: a row per target and source, with its interval and facts."""
        return pd.concat(
            scores.to_frame().assign(
                clt=name, tokens=tokens, kind=kind, reduce=reduce, l0=scores.l0, n=scores.n_images
            )
            for (name, tokens, kind, reduce), scores in self.scores.items()
        )

    def shown(self) -> pd.DataFrame:
        """The drawn scores of the last target, a row per CLT, rows and kind.

        A CLT without a skip connection has "-" in the column of those that have one.
        """
        rows = []
        for name, tokens, kind in self._drawn:
            scores = self.drawn(name, tokens, kind)
            prefix = [name] if len(self.names) > 1 else []
            last = zip(scores.columns, scores.values[-1].tolist(), strict=True)
            shares = [(column, share) for column, share in last if column != "bias"]
            title = {"source layer": ", ".join([*prefix, ROW_NAMES[tokens], kind])}
            rows.append(title | {column: f"{share:.3f}" for column, share in shares})
        return pd.DataFrame(rows).fillna("-")

    def notes(self) -> Sequence[str]:
        """A sentence on what a score does not say, and what other kinds of score say of theirs."""
        others = [s for s in self.scores.values() if not isinstance(s, ContributionScores)]
        return [MEANING, *dict.fromkeys(note for s in others for note in s.notes())]

    def metrics(self) -> list[Metric]:
        """The drawn scores of the last target and their differences, with intervals.

        Names are {kind}_{rows}_{source}_to_{target}, after the name of the CLT where there are
        several.
        """
        first = self.names[0]
        metrics = []
        for name, tokens, kind in self._drawn:
            prefix = f"{name}_" if len(self.names) > 1 else ""
            metrics += self.drawn(name, tokens, kind).metrics(prefix)
            if name != first:
                difference = self.difference.drawn(name, tokens, kind)
                metrics += difference.metrics(f"{first}_less_{name}_")
        return metrics

    def companions(self) -> Sequence[Study]:
        """The differences, where there are several CLTs."""
        return [self.difference] if len(self.names) > 1 else []

    def figure(self) -> go.Figure:
        """Heatmaps, CLS rows above patch rows, with a column for each kind or for each CLT."""
        from vit_clt.analysis.contributions.figure import contribution_figure

        if len(self.names) == 1:
            grid = [[self.drawn(self.names[0], t, k) for k in self.kinds] for t in self.tokens]
            return contribution_figure(grid)
        panel_rows = [(t, k) for k in self.kinds for t in self.tokens]
        grid = [[self.drawn(name, *row) for name in self.names] for row in panel_rows]
        return contribution_figure(grid, self.names)

    @property
    def _drawn(self) -> list[tuple[str, TokenKind, ScoreKind]]:
        return [(n, t, k) for n in self.names for t in self.tokens for k in self.kinds]


def score_study(
    vit: HookedViT,
    clts: Mapping[str, CrossLayerTranscoder],
    data: ImageData,
    *,
    tokens: Sequence[TokenKind] | None = None,
    kinds: Sequence[ScoreKind] = ("projection", "centred"),
    label: int | str | None = None,
    image: int | None = None,
    max_groups: int = MAX_GROUPS,
    kept_bytes: int = KEPT_BYTES,
    seed: int = 0,
    further: Mapping[str, Sequence[SourceScores]] | None = None,
    progress: bool = False,
) -> ScoreStudy:
    """All scores of every CLT, from two passes over the images that the CLTs share.

    Args:
        vit: the teacher.
        clts: its transcoders by name.
        data: the images.
        tokens: kinds of rows scored, one above the other in figures; by default "cls" and "patch",
            or the one that the model has.
        kinds: kinds of score that are drawn; `centred` is left out where there is one image.
        label: score only the images of this class, a number or a name.
        image: score only the image of this number.
        max_groups: as in `contribution_scores`.
        kept_bytes: the same, of all CLTs together.
        seed: seed of the bootstrap, whose draws all scores share, and of the groups.
        further: scores of other kinds by name of their CLT, as `effect_scores` makes them, of the
            same images and one for each of `tokens`.
        progress: show a progress bar.

    Raises:
        InputError: as `contribution_scores`, there is no kind to draw, or scores of one that is to
            be drawn are missing or of other images.
    """
    tokens = vit.cfg.rows.having(("cls", "patch")) if tokens is None else tokens
    for token_kind in tokens:
        token_rows(token_kind, vit.cfg.rows)
    check_image_choice(label, image, data.class_names, len(data), max_groups)
    defined = [(kind, how) for kind, how in ALL_SCORES if kind != "centred" or len(data) > 1]
    made = _further(further or {}, list(clts), tokens, data)
    if made and (label is not None or image is not None):
        raise InputError("further", "is given with a label or an image; expected all images.")
    shown = [kind for kind in kinds if kind in dict(defined) or kind == "effect"]
    if not shown:
        given = f'"{kinds[0]}"' if kinds else "empty"
        raise InputError("kind", f"is {given}; expected one that {len(data)} images define.")
    if "effect" in shown:
        for name, rows in product(clts, tokens):
            if (name, rows, "effect", "ratio_of_means") not in made:
                raise InputError(
                    "kinds",
                    f'hold "effect", of which {name} has none on {rows} rows; expected those '
                    "of effect_scores in `further`.",
                )
    moments = compared_moments(
        vit,
        list(clts.values()),
        data,
        max_groups=max_groups,
        kept_bytes=kept_bytes,
        seed=seed,
        progress=progress,
    )
    scores: dict[Key, SourceScores] = {
        (name, rows, kind, how): score(
            clt_moments, tokens=rows, kind=kind, reduce=how, label=label, image=image, seed=seed
        )
        for name, clt_moments in zip(clts, moments, strict=True)
        for rows in tokens
        for kind, how in defined
    }
    return ScoreStudy(scores | made, list(clts), list(tokens), shown)


def _further(
    further: Mapping[str, Sequence[SourceScores]],
    names: Sequence[str],
    tokens: Sequence[TokenKind],
    data: ImageData,
) -> dict[Key, SourceScores]:
    """Scores that were made elsewhere, by key; of other CLTs, rows or images they are refused."""
    made: dict[Key, SourceScores] = {}
    for name, scores in further.items():
        for each in scores:
            same = (each.data, each.n_images) == (data.name, len(data))
            if name not in names or each.tokens not in tokens or not same:
                raise InputError(
                    "further",
                    f"holds scores of {name} on {each.tokens} rows of {each.data} (N = "
                    f"{each.n_images}); expected those of the CLTs, rows and images that are "
                    "scored.",
                )
            made[name, each.tokens, each.kind, each.reduce] = each
    return made
