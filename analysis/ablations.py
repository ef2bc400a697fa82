"""Keep or drop the top-k source layers of one target's reconstruction, and read the model.

The target's MLP output rows are overwritten by b_dec + (kept terms) + (fills of dropped terms),
through a hook, and zero-shot accuracy and loss are read. Terms come from the teacher trajectory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import plotly.graph_objects as go
from torch import Tensor

from vit_clt.analysis.contributions import ContributionScores, contribution_scores
from vit_clt.analysis.readings import Accuracy, Measure, Readings
from vit_clt.analysis.term_sets import REFERENCES, Fill, TermSets
from vit_clt.data import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, TokenKind, layer_list, token_rows
from vit_clt.metrics import Metric
from vit_clt.transcoder import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot

Mode = Literal["keep", "drop"]


@dataclass(frozen=True)
class Ablation:
    """One kept set, beside the lines it is to be read against."""

    top1: float
    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float
    kept: list[int]
    """Source layers whose terms stayed."""
    bias_only: Accuracy
    """y^ = b_dec: every term dropped, nothing filled in."""
    floor_zero: Accuracy
    """The model's own MLP rows at the target set to zero."""
    floor_mean: Accuracy
    """The model's own MLP rows at the target set to their mean over the images."""
    full: Accuracy
    """Every term kept."""
    original: Accuracy
    """The unaltered model."""
    n: int
    no_op: bool
    """Whether these rows cannot reach the output (patch rows of the last layer, CLS pooling)."""
    readings: Readings
    name: str

    def recovered(
        self, floor: Literal["floor_zero", "floor_mean"] = "floor_mean", measure: Measure = "top1"
    ) -> float:
        """(value - floor) / (full - floor); NaN where the interval of full - floor contains 0."""
        return self.readings.recovered(self.name, "full", floor, measure)


@dataclass(frozen=True)
class AblationCurves:
    """Keep and drop for every k from 0 to the number of sources, one pass over the images."""

    ranking: list[int]
    """Sources from highest to lowest score."""
    ranked_by: str
    """Which score ranked them, on which rows and images."""
    readings: Readings
    tokens: TokenKind
    target: int
    fill: Fill
    data: str
    seed: int
    l0: float
    """Active features a token and layer, on these rows, over the target's sources."""
    no_op: bool

    def at(self, mode: Mode, k: int) -> Accuracy:
        """The reading with the top k sources kept, or dropped."""
        return self.readings[f"{mode}_{k}"]

    def to_frame(self) -> pd.DataFrame:
        """One row per mode and k, with references and recovered fractions beside it."""
        original, zero, mean = (
            self.readings[name] for name in ("original", "floor_zero", "floor_mean")
        )
        return pd.DataFrame(
            {
                "mode": mode,
                "k": k,
                "sources": " ".join(map(str, self.ranking[:k])),
                **self.at(mode, k).columns(),
                "baseline": original.top1,
                "floor_zero": zero.top1,
                "floor_mean": mean.top1,
                "loss_baseline": original.loss,
                "loss_floor_zero": zero.loss,
                "loss_floor_mean": mean.loss,
                "recovered_top1": self.readings.recovered(f"{mode}_{k}", "full", "floor_mean"),
                "recovered_loss": self.readings.recovered(
                    f"{mode}_{k}", "full", "floor_mean", "loss"
                ),
            }
            for mode in get_args(Mode)
            for k in range(len(self.ranking) + 1)
        )

    def metrics(self, prefix: str = "") -> list[Metric]:
        """Accuracy and loss of every point, beside the mean floor and the unaltered model."""
        original, floor = self.readings["original"], self.readings["floor_mean"]
        found = []
        for name in (*REFERENCES[1:], *(n for n in self.readings.names if n not in REFERENCES)):
            r = self.readings[name]
            found += [
                Metric(
                    f"{prefix}{name}_top1",
                    r.top1,
                    "fraction",
                    r.n,
                    r.low,
                    r.high,
                    floor.top1,
                    original.top1,
                ),
                Metric(
                    f"{prefix}{name}_loss",
                    r.loss,
                    "nats",
                    r.n,
                    r.loss_low,
                    r.loss_high,
                    floor.loss,
                    original.loss,
                ),
            ]
            if r.any_hit is not None:
                found.append(
                    Metric(
                        f"{prefix}{name}_any_hit",
                        r.any_hit,
                        "fraction",
                        r.n,
                        r.any_hit_low,
                        r.any_hit_high,
                        floor.any_hit,
                        original.any_hit,
                    )
                )
        return found

    def figure(self) -> go.Figure:
        """Accuracy and loss against k, keep and drop, with the reference lines."""
        from vit_clt.analysis.ablation_figure import ablation_figure

        return ablation_figure(self)


def keep_top_k(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    *,
    k: int = 4,
    scores: ContributionScores | None = None,
    target: int = -1,
    tokens: TokenKind = "cls",
    fill: Fill = "zero",
    seed: int = 0,
    progress: bool = False,
) -> Ablation:
    """Keep the k sources with the highest signed score, drop the others.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        zs: the zero-shot classifier.
        k: how many sources.
        scores: the ranking; by default projection scores of the same images and rows. Ties go to
            the later layer.
        target: the layer whose MLP rows are overwritten; -1 is the last.
        tokens: rows overwritten.
        fill: what stands in for a dropped term: "zero", its "mean" over `data` at the same row,
            or "resample": the same term of another image of `data`, one donor for all terms of an
            image, drawn by `seed`.
        seed: of the resample fill and of the bootstrap.
        progress: show a progress bar.

    Raises:
        InputError: an argument out of range, labels without names, or a CLT of another model.
    """
    return _one(vit, clt, data, zs, "keep", k, scores, target, tokens, fill, seed, progress)


def drop_top_k(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    *,
    k: int = 4,
    scores: ContributionScores | None = None,
    target: int = -1,
    tokens: TokenKind = "cls",
    fill: Fill = "zero",
    seed: int = 0,
    progress: bool = False,
) -> Ablation:
    """Drop the k sources with the highest signed score, keep the others; see `keep_top_k`."""
    return _one(vit, clt, data, zs, "drop", k, scores, target, tokens, fill, seed, progress)


def ablation_curves(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    *,
    scores: ContributionScores | None = None,
    target: int = -1,
    tokens: TokenKind = "cls",
    fill: Fill = "zero",
    seed: int = 0,
    progress: bool = False,
) -> AblationCurves:
    """Keep and drop for every k from 0 to all sources; arguments as in `keep_top_k`."""
    data = as_image_data(data)
    target = _check(vit, target, tokens, fill)
    scores = scores or contribution_scores(vit, clt, data, tokens=tokens, progress=progress)
    ranking = rank_sources(scores, target)
    plans = {
        f"{mode}_{k}": sorted(ranking[:k] if mode == "keep" else ranking[k:])
        for mode in get_args(Mode)
        for k in range(len(ranking) + 1)
    }
    study = TermSets(vit, clt, data, zs, target, tokens, fill, seed, progress)
    return AblationCurves(
        ranking=ranking,
        ranked_by=scores.label,
        readings=study.read(plans),
        tokens=tokens,
        target=target,
        fill=fill,
        data=data.name,
        seed=seed,
        l0=study.l0(),
        no_op=study.no_op,
    )


def rank_sources(scores: ContributionScores, target: int) -> list[int]:
    """Sources of a target from highest to lowest signed score; ties go to the later layer.

    Raises:
        InputError: a score is undefined (centred scores of a reconstruction that does not vary).
    """
    row = scores.matrix[target][: target % len(scores.matrix) + 1].tolist()
    if any(value != value for value in row):
        raise InputError(f"scores hold NaN at layer {target}; expected a number for every source.")
    return sorted(range(len(row)), key=lambda s: (-row[s], -s))


def _one(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    zs: ZeroShot,
    mode: Mode,
    k: int,
    scores: ContributionScores | None,
    target: int,
    tokens: TokenKind,
    fill: Fill,
    seed: int,
    progress: bool,
) -> Ablation:
    data = as_image_data(data)
    target = _check(vit, target, tokens, fill)
    if not 0 <= k <= target + 1:
        raise InputError(f"k is {k}; layer {target} has {target + 1} sources, expected 0 to that.")
    scores = scores or contribution_scores(vit, clt, data, tokens=tokens, progress=progress)
    ranking = rank_sources(scores, target)
    kept = sorted(ranking[:k] if mode == "keep" else ranking[k:])
    name = f"{mode}_{k}"
    study = TermSets(vit, clt, data, zs, target, tokens, fill, seed, progress)
    readings = study.read({name: kept})
    reading = readings[name]
    return Ablation(
        top1=reading.top1,
        low=reading.low,
        high=reading.high,
        loss=reading.loss,
        loss_low=reading.loss_low,
        loss_high=reading.loss_high,
        kept=kept,
        **{reference: readings[reference] for reference in REFERENCES},
        n=readings.n,
        no_op=study.no_op,
        readings=readings,
        name=name,
    )


def _check(vit: HookedViT, target: int, tokens: TokenKind, fill: str) -> int:
    token_rows(tokens, vit.cfg.has_cls)
    if fill not in get_args(Fill):
        raise InputError(f'fill is "{fill}"; expected "zero", "mean" or "resample".')
    return layer_list(target, vit.cfg.n_layers)[0]
