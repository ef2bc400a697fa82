"""Contribution scores C(s->l): from which depth can y_l be sparsely read?

With terms c_s = W_dec[s->l] z_s and y^_l = b_dec[l] + sum_s c_s, over the scored token rows:

    projection  E[<c_s, y^> / <y^, y^>]; with the bias column it sums to 1; may be negative
    centred     E<c_s - mean c_s, y^ - mean y^> / E||y^ - mean y^||^2, means over images at the
                same token position; sums to 1; free of what is the same in every image; NaN where
                y^ does not vary
    norm        E[||c_s|| / sum_j ||c_j||]
    loo         E||c_s||^2 / E||y^||^2
    loo_r2      fall in R^2 against the true y when c_s is removed

`reduce="ratio_of_means"` divides means instead of averaging ratios, for projection and norm; the
other kinds are ratios of means by definition. That the paper's score is a projection normalised by
the reconstruction is known second-hand; the inner form and the other kinds are ours.

z_s reads everything in the stream up to depth s: C(s->l) does not say what MLP_s contributed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.moments import ContributionMoments, TargetMoments, contribution_moments
from vit_clt.data import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, TokenKind, token_rows
from vit_clt.transcoder import CrossLayerTranscoder

ScoreKind = Literal["projection", "centred", "norm", "loo", "loo_r2"]
Reduce = Literal["mean_of_ratios", "ratio_of_means"]
ALL_SCORES: tuple[tuple[ScoreKind, Reduce], ...] = (
    ("projection", "mean_of_ratios"),
    ("projection", "ratio_of_means"),
    ("centred", "ratio_of_means"),
    ("norm", "mean_of_ratios"),
    ("norm", "ratio_of_means"),
    ("loo", "ratio_of_means"),
    ("loo_r2", "ratio_of_means"),
)
# rows whose ||y^||^2 is below this share of its mean are left out of mean ratios, and counted
NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class ContributionScores:
    """C(s->l) on one set of images; `matrix` is NaN above the diagonal (s > l)."""

    matrix: Float[Tensor, "target source"]
    bias: Float[Tensor, " target"]
    """Share of b_dec; NaN for norm, whose shares are among terms alone; 0 for centred."""
    excluded: Int[Tensor, " target"]
    """Rows left out because ||y^||^2 is negligible (mean of ratios only); `norm` also leaves out
    rows on which every term is silent, which have no shares."""
    kind: ScoreKind
    reduce: Reduce
    """How it was averaged; centred, loo and loo_r2 are ratios of means by definition."""
    tokens: TokenKind
    n_images: int
    data: str
    l0: float
    """Active features a token and layer, over the scored rows."""
    moments: ContributionMoments

    @property
    def label(self) -> str:
        """Kind, reduction, rows and images, for captions."""
        return f"{self.kind} ({self.reduce.replace('_', ' ')}), {self.tokens} rows, {self.data}"

    def to_frame(self) -> pd.DataFrame:
        """One row per (target, source) with its score; `source` is -1 for the bias column."""
        rows = [
            {"target": l, "source": s, "score": float(self.matrix[l, s])}
            for l in range(len(self.matrix))
            for s in range(l + 1)
        ]
        rows += [{"target": l, "source": -1, "score": float(b)} for l, b in enumerate(self.bias)]
        return pd.DataFrame(rows)

    def figure(self) -> go.Figure:
        """A heatmap of targets against sources."""
        from vit_clt.analysis.contribution_figure import contribution_figure

        return contribution_figure([[self]])


def contribution_scores(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor | Iterable[Any],
    *,
    tokens: TokenKind = "cls",
    kind: ScoreKind = "projection",
    reduce: Reduce = "mean_of_ratios",
    progress: bool = False,
) -> ContributionScores:
    """Scores of every source at every target, on the teacher trajectory.

    Args:
        vit: the teacher.
        clt: its transcoder.
        images: ImageData, a tensor "image 3 height width", or batches.
        tokens: rows that are scored.
        kind: see the module's table.
        reduce: how projection and norm are averaged.
        progress: show a progress bar.

    Raises:
        InputError: an unknown kind, reduction or token kind; one image with `centred`; no images;
            or a CLT of another model.
    """
    _check_choice(kind, reduce)
    token_rows(tokens, vit.cfg.has_cls)
    moments = contribution_moments(vit, clt, images, progress=progress)
    return score(moments, tokens=tokens, kind=kind, reduce=reduce)


def score(
    moments: ContributionMoments,
    *,
    tokens: TokenKind = "cls",
    kind: ScoreKind = "projection",
    reduce: Reduce = "mean_of_ratios",
) -> ContributionScores:
    """Any score from moments already gathered; arguments as in `contribution_scores`."""
    _check_choice(kind, reduce)
    rows = token_rows(tokens, moments.has_cls)
    if kind == "centred" and moments.n_images < 2:
        raise InputError("images has 1 row; centred scores need at least 2 images.")
    if kind not in ("projection", "norm"):
        reduce = "ratio_of_means"
    n = len(moments.targets)
    matrix = torch.full((n, n), torch.nan, dtype=torch.float64)
    bias = torch.zeros(n, dtype=torch.float64)
    excluded = torch.zeros(n, dtype=torch.long)
    for l, target in enumerate(moments.targets):
        b = moments.b_dec[l]
        if reduce == "mean_of_ratios":
            shares, bias[l], left_out = _mean_of_ratios(target, rows, kind)
            excluded[l] = left_out
        else:
            shares, bias[l] = _ratio_of_means(target, rows, kind, b, moments.n_images)
        matrix[l, : l + 1] = shares.cpu()
    return ContributionScores(
        matrix=matrix,
        bias=bias,
        excluded=excluded,
        kind=kind,
        reduce=reduce,
        tokens=tokens,
        n_images=moments.n_images,
        data=moments.data,
        l0=float(moments.l0[:, rows].mean()),
        moments=moments,
    )


def _mean_of_ratios(
    target: TargetMoments, rows: slice, kind: ScoreKind
) -> tuple[Tensor, float, int]:
    scored = list(range(*rows.indices(len(target.yy))))
    n_rows = target.rows_seen // len(target.yy) * len(scored)
    negligible = NEGLIGIBLE * float(target.yy[rows].sum()) / n_rows
    waiting = [row for row in target.suspects if row.token in scored]
    kept = [row for row in waiting if row.yy >= negligible and row.yy > 0]
    left_out = len(waiting) - len(kept)
    if kind == "norm":
        kept = [row for row in kept if row.norm_ratio.isfinite().all()]
        total, count = target.norm_ratio[:, rows].sum(1), float(target.norm_rows[rows].sum())
        total = total + sum(row.norm_ratio for row in kept)
        return total / (count + len(kept)), float("nan"), left_out
    total, count = target.ratio[:, rows].sum(1), float(target.ratio_rows[rows].sum())
    total = total + sum(row.ratio for row in kept)
    bias = float(target.bias_ratio[rows].sum()) + sum(row.bias_ratio for row in kept)
    n = count + len(kept)
    return total / n, bias / n if n else float("nan"), left_out


def _ratio_of_means(
    target: TargetMoments, rows: slice, kind: ScoreKind, b: Tensor, n: int
) -> tuple[Tensor, float | Tensor]:
    y_sum = target.y_sum[rows]
    yy = target.yy[rows].sum()
    if kind == "projection":
        return target.cy[:, rows].sum(1) / yy, (y_sum @ b).sum() / yy
    if kind == "norm":
        norms = target.norm[:, rows].sum(1)
        return norms / norms.sum(), float("nan")
    if kind == "loo":
        n_rows = n * len(y_sum)
        return target.cc[:, rows].sum(1) / yy, n_rows * b.square().sum() / yy
    if kind == "centred":
        spread = yy - y_sum.square().sum() / n
        together = target.cy[:, rows].sum(1) - torch.einsum(
            "std,td->s", target.c_sum[:, rows], y_sum / n
        )
        # what is left of the spread is then rounding: nothing varies, and no share is defined
        varies = spread > NEGLIGIBLE * yy
        return torch.where(varies, together / spread, torch.nan), 0.0
    true_sum = target.true_sum[rows]
    n_rows = n * len(true_sum)
    variation = target.true_yy[rows].sum() - true_sum.sum(0).square().sum() / n_rows
    fall = 2 * target.ce[:, rows].sum(1) + target.cc[:, rows].sum(1)
    bias_fall = 2 * ((true_sum - y_sum) @ b).sum() + n_rows * b.square().sum()
    return fall / variation, bias_fall / variation


def _check_choice(kind: str, reduce: str) -> None:
    for name, value, choices in (("kind", kind, ScoreKind), ("reduce", reduce, Reduce)):
        if value not in get_args(choices):
            raise InputError(
                f'{name} is "{value}"; expected one of {", ".join(get_args(choices))}.'
            )
