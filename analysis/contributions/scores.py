"""Contribution scores C(s->l): from which depth can y_l be sparsely read?

With terms c_s = W_dec[s->l] z_s and y^_l = b_dec[l] + sum_s c_s, over the scored token rows (the
term of a skip connection, W_skip[l] x_l, has a column of its own and counts in sums as a c_s does):

    projection  E[<c_s, y^> / <y^, y^>]; with the bias column it sums to 1; may be negative
    centred     E<c_s - mean c_s, y^ - mean y^> / E||y^ - mean y^||^2, means over images at the
                same token position; sums to 1; free of what is the same in every image; NaN where
                y^ does not vary
    norm        E[||c_s|| / sum_j ||c_j||]
    loo         E||c_s||^2 / E||y^||^2
    loo_r2      fall in R^2 against the true y when c_s is removed

All images are scored, or those of one class (`label`), or one (`image`). The means over images in a
definition (in centred, and of y in the R^2 of loo_r2) are over all images, whichever are scored.
`reduce="ratio_of_means"` divides means instead of averaging ratios, for projection and norm; the
other kinds are ratios of means by definition. That the paper's score is a projection normalised by
the reconstruction is known second-hand; the inner form and the other kinds are ours.

z_s reads everything in the stream up to depth s: C(s->l) does not say what MLP_s contributed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.contributions.moments import ContributionMoments, contribution_moments
from vit_clt.analysis.contributions.parts import REDUCIBLE, ScoreParts, score_parts, shares
from vit_clt.analysis.contributions.scored_images import check_image_choice, scored_images
from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.analysis.reporting.study import Facts
from vit_clt.analysis.stats.intervals import RESAMPLES, bootstrap_means
from vit_clt.choices import (
    KEPT_BYTES,
    MAX_GROUPS,
    ContributionKind,
    Reduce,
    TokenKind,
    check_choice,
)
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, token_rows
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

ALL_SCORES: tuple[tuple[ContributionKind, Reduce], ...] = (
    ("projection", "mean_of_ratios"),
    ("projection", "ratio_of_means"),
    ("centred", "ratio_of_means"),
    ("norm", "mean_of_ratios"),
    ("norm", "ratio_of_means"),
    ("loo", "ratio_of_means"),
    ("loo_r2", "ratio_of_means"),
)
MEANING = "C(s->l) says from which depth y_l can be sparsely read, not what MLP_s contributed."


@dataclass(frozen=True, kw_only=True)
class ContributionScores(SourceScores):
    """Contribution scores C(s->l) of one kind on one set of images and token rows.

    Centred, loo and loo_r2 are ratios of means by definition.
    """

    name = "scores"

    bias: Float[Tensor, " target"]
    """Score of b_dec; NaN for norm, whose shares are among terms alone; 0 for centred."""
    skip: Float[Tensor, " target"] | None
    """Score of the skip connection, which reads x_l alone; None for a CLT without one."""
    excluded: Int[Tensor, " target"]
    """Number of token rows that a mean of ratios leaves out because ||y^||^2 is negligible. Rows on
    which every term is zero, which norm leaves out too, are not counted."""
    kind: ContributionKind
    images: Int[Tensor, " scored"]
    """Numbers of the scored images in the data."""
    moments: ContributionMoments

    @property
    def title(self) -> str:
        """Kind and letter, as "centred C"."""
        return f"{self.kind} C"

    @property
    def how(self) -> str:
        """The reduction, of kinds that have a choice of it."""
        return self.reduce.replace("_", " ") if self.kind in REDUCIBLE else ""

    @property
    def label(self) -> str:
        """Kind, reduction, rows and images, for captions."""
        return f"{self.kind} ({self.reduce.replace('_', ' ')}), {self.tokens} rows, {self.data}"

    @property
    def columns(self) -> list[str]:
        """What the columns of `values` belong to: the sources, "skip" if there is one, "bias"."""
        skip = [] if self.skip is None else ["skip"]
        return [*map(str, range(len(self.matrix))), *skip, "bias"]

    @property
    def values(self) -> Float[Tensor, "target column"]:
        """`matrix`, `skip` and `bias` side by side."""
        rest = [self.bias] if self.skip is None else [self.skip, self.bias]
        return torch.cat([self.matrix, torch.stack(rest, 1)], 1)

    @property
    def on_output(self) -> Float[np.ndarray, " source"]:
        """C(s->L-1)."""
        return self.matrix[-1].numpy()

    @property
    def variation(self) -> Sequence[Tensor]:
        """The numbers of the images, and how y of each varies."""
        return [self.images, self.moments.variation["all"]]

    @property
    def source_draws(self) -> Float[np.ndarray, "draw target source"]:
        """`draws` of the matrix alone."""
        return self.draws[:, :, : len(self.matrix)]

    @cached_property
    def draws(self) -> Float[np.ndarray, "draw target column"]:
        """`values` on bootstrap draws of the scored images.

        Every score is a ratio of two sums over images, and each draw divides its sums. Where images
        were added up in groups, groups are drawn (`ImageGroups`). The means
        over images inside centred and loo_r2 stay those of all images; means over a draw would
        differ by a share of about 1/N. Scores with the same seed and number of images share their
        draws, so that their differences are paired. All draws are NaN where there is one image.
        """
        n = len(self.moments.targets)
        scores = np.full((RESAMPLES, n, len(self.columns)), np.nan)
        if self.n_images < 2:
            return scores
        parts = [self._parts(l) for l in range(n)]
        summed = [torch.cat([p.numerator, p.denominator[None], p.scale[None]]) for p in parts]
        values = torch.cat(summed)[:, self.moments.groups_of(self.images)].T.numpy()
        means = np.split(
            bootstrap_means(values, self.seed), np.cumsum([len(s) for s in summed])[:-1], axis=1
        )
        for l, target_means in enumerate(means):
            sums = torch.from_numpy(target_means)
            drawn = shares(sums[:, :-2], sums[:, -2], sums[:, -1])
            scores[:, l, : l + 1], scores[:, l, n:] = drawn[:, : l + 1], drawn[:, l + 1 :]
        return scores

    def rescored(self, kind: ContributionKind) -> ContributionScores:
        """Scores of another kind on the same rows and images, with the same seed.

        Where both kinds can be averaged either way, the reduction stays the same. From a kind that
        is a ratio of means by definition, projection and norm become means of ratios, which is the
        default of `score`.

        Raises:
            InputError: the kind is unknown, or it is centred and the data have one image.
        """
        reduce: Reduce = self.reduce if self.kind in REDUCIBLE else "mean_of_ratios"
        return _scored(
            self.moments, self.images, self.data, self.tokens, kind, reduce, seed=self.seed
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per (target, source): score, low, high; `source` is -1 for bias, -2 for skip."""
        values = self.values
        return pd.DataFrame(
            {
                "target": l,
                "source": s,
                "score": float(values[l, column]),
                "low": float(self.low[l, column]),
                "high": float(self.high[l, column]),
            }
            for l, s, column in cells(self.columns)
        )

    def facts(self) -> Facts:
        """The images and rows that were scored, and the kind of score."""
        return Facts(
            data=self.data,
            n=self.n_images,
            tokens=self.tokens,
            trajectory="teacher",
            l0=self.l0,
            split=self.moments.split,
            seed=self.seed,
            more={
                "kind": self.kind,
                "reduce": self.reduce,
                "excluded_rows": int(self.excluded.sum()),
                **self.moments.groups.facts(),
            },
        )

    def caption(self) -> str:
        """One sentence on what was scored and what `shown` lists."""
        return (
            f"shares of each layer's reconstruction by source layer, {self.label}, "
            f"N = {self.n_images}, teacher trajectory, L0 {self.l0:.1f}"
        )

    def shown(self) -> pd.DataFrame:
        """One row per target: the share of every source, of a skip connection, and of the bias."""
        texts = [
            ["" if share != share else f"{share:.3f}" for share in row]
            for row in self.values.tolist()
        ]
        rows = [[l, *row] for l, row in enumerate(texts)]
        return pd.DataFrame(rows, columns=["target layer", *self.columns])

    def notes(self) -> Sequence[str]:
        """A sentence on what a score does not say."""
        return [MEANING]

    def metrics(self, prefix: str = "") -> list[Metric]:
        """The scores of the last target, named {kind}_{rows}_{source}_to_{target}.

        The source of a skip connection's score is "skip".
        """
        name = f"{prefix}{self.kind}_{self.tokens}"
        return last_target_metrics(name, self.to_frame(), "score", self.n_images)

    def figure(self) -> go.Figure:
        """A heatmap of targets against sources."""
        from vit_clt.analysis.contributions.figure import contribution_figure

        return contribution_figure([[self]])

    def _parts(self, target: int) -> ScoreParts:
        return score_parts(self.moments, target, self.tokens, self.kind, self.reduce)


def contribution_scores(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor | Iterable[Any],
    *,
    tokens: TokenKind = "cls",
    kind: ContributionKind = "projection",
    reduce: Reduce = "mean_of_ratios",
    label: int | str | None = None,
    image: int | None = None,
    max_groups: int = MAX_GROUPS,
    kept_bytes: int = KEPT_BYTES,
    seed: int = 0,
    progress: bool = False,
) -> ContributionScores:
    """Scores of every source at every target, on the teacher trajectory.

    Args:
        vit: the teacher.
        clt: its transcoder.
        images: ImageData, a tensor "image 3 height width", or batches.
        tokens: kind of rows that are scored.
        kind: kind of score, defined at the top of this module.
        reduce: how projection and norm are averaged.
        label: score only the images of this class, given by number or name (`class_number`).
        image: score only the image of this number in `images`.
        max_groups: the most groups that images are added up in, so that memory is bounded
            (`image_groups`). With more images there are no scores of a class or an image.
        kept_bytes: the most bytes of codes kept between both passes over the images.
        seed: seed of the bootstrap and of the groups.
        progress: show a progress bar.

    Raises:
        InputError: kind, reduction or token kind are unknown; class or image do not exist, both
            are given, or there are more images than groups; the kind is centred and there is one
            image; there are no images; or the CLT belongs to another model.
    """
    check_choice("kind", kind, get_args(ContributionKind))
    check_choice("reduce", reduce, get_args(Reduce))
    token_rows(tokens, vit.cfg.rows)
    data = as_image_data(images)
    check_image_choice(label, image, data.class_names, len(data), max_groups)
    moments = contribution_moments(
        vit,
        clt,
        data,
        max_groups=max_groups,
        kept_bytes=kept_bytes,
        seed=seed,
        progress=progress,
    )
    return score(
        moments, tokens=tokens, kind=kind, reduce=reduce, label=label, image=image, seed=seed
    )


def score(
    moments: ContributionMoments,
    *,
    tokens: TokenKind = "cls",
    kind: ContributionKind = "projection",
    reduce: Reduce = "mean_of_ratios",
    label: int | str | None = None,
    image: int | None = None,
    seed: int = 0,
) -> ContributionScores:
    """The matrix C(s->l) of any kind, from moments that one pass over the images left.

    The other arguments are those of `contribution_scores`, which makes the pass itself.
    """
    token_rows(tokens, moments.rows)
    images, suffix = scored_images(moments, label, image)
    return _scored(moments, images, moments.data + suffix, tokens, kind, reduce, seed)


def _scored(
    moments: ContributionMoments,
    images: Int[Tensor, " scored"],
    data: str,
    tokens: TokenKind,
    kind: ContributionKind,
    reduce: Reduce,
    seed: int,
) -> ContributionScores:
    check_choice("kind", kind, get_args(ContributionKind))
    check_choice("reduce", reduce, get_args(Reduce))
    if kind == "centred" and moments.n_images < 2:
        raise InputError("images", "has 1 row; centred scores need at least 2 images.")
    if kind not in REDUCIBLE:
        reduce = "ratio_of_means"
    n = len(moments.targets)
    matrix = torch.full((n, n), torch.nan, dtype=torch.float64)
    bias = torch.zeros(n, dtype=torch.float64)
    skip = torch.zeros(n, dtype=torch.float64) if moments.has_skip else None
    excluded = torch.zeros(n, dtype=torch.long)
    groups = moments.groups_of(images)
    for l in range(n):
        parts = score_parts(moments, l, tokens, kind, reduce)
        scores = shares(
            parts.numerator[:, groups].sum(-1),
            parts.denominator[groups].sum(),
            parts.scale[groups].sum(),
        )
        matrix[l, : l + 1], bias[l] = scores[: l + 1], scores[-1]
        if skip is not None:
            skip[l] = scores[-2]
        excluded[l] = parts.excluded[groups].sum()
    return ContributionScores(
        matrix=matrix,
        bias=bias,
        skip=skip,
        excluded=excluded,
        kind=kind,
        reduce=reduce,
        tokens=tokens,
        n_images=len(images),
        data=data,
        l0=moments.mean_l0(tokens, images),
        seed=seed,
        images=images,
        moments=moments,
    )


SPECIAL = {"skip": -2, "bias": -1}
"""The source number, in tables, of the columns that belong to no source."""


def cells(columns: Sequence[str]) -> list[tuple[int, int, int]]:
    """Target, source number and column of every score: all sources, then every other column."""
    rest = [name for name in columns if name in SPECIAL]
    n = len(columns) - len(rest)
    found = [(l, s, s) for l in range(n) for s in range(l + 1)]
    return found + [(l, SPECIAL[name], n + i) for i, name in enumerate(rest) for l in range(n)]


def last_target_metrics(name: str, frame: pd.DataFrame, column: str, n: int) -> list[Metric]:
    """Metrics of the deepest target's sources and skip, from a table by target and source.

    Args:
        name: start of the metrics' names; "_{source}_to_{target}" follows.
        frame: table with the columns target, source, low, high and `column`.
        column: name of the column with the values.
        n: number of images.
    """
    last = frame["target"].max()
    return [
        Metric(
            f"{name}_{'skip' if row.source == SPECIAL['skip'] else row.source}_to_{last}",
            getattr(row, column),
            "fraction",
            n,
            row.low,
            row.high,
        )
        for row in frame.query(f"target == {last} and source != {SPECIAL['bias']}").itertuples()
    ]
