"""Ablation curves: the first k sources of several orders kept or dropped, for every k."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd
from typing_extensions import Unpack

from vit_clt.analysis.ablations.ablation import sources_text
from vit_clt.analysis.ablations.keep_drop import (
    AblationOptions,
    Mode,
    kept_sources,
    sources_at,
    term_sets,
)
from vit_clt.analysis.ablations.rankings import Order, source_orders
from vit_clt.analysis.ablations.result import AblationStudy
from vit_clt.analysis.ablations.term_sets import REFERENCES
from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.readings import MEASURES, UNITS, Measure, Reading
from vit_clt.choices import Ranking, ScoreKind
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

GIVEN = "given"
"""Stands in the place of a ranking's name for a set of sources that the caller gave."""


@dataclass(frozen=True)
class Point:
    """One point of a curve: the sources that are kept or dropped at every target."""

    ranking: str
    draw: int
    mode: Mode
    k: int
    sources_at: dict[int, list[int]]
    """By target, the sources that mode "keep" keeps and mode "drop" drops, in ranking order."""

    @property
    def name(self) -> str:
        """Name of this version of the model in the readings."""
        return f"{self.ranking}_{self.draw}_{self.mode}_{self.k}"

    @property
    def sources(self) -> str:
        """The kept or dropped sources as text: "7 5", of several targets "6: 6 5 | 7: 7 5"."""
        return sources_text(self.sources_at)


@dataclass(frozen=True, kw_only=True)
class AblationCurves(AblationStudy):
    """Readings with the first k sources kept or dropped, for every k and several rankings."""

    name = "ablation"

    orders: list[Order]
    """Orders of the sources, that of the main ranking first; a random ranking has one per draw."""
    points: list[Point]
    ranked_by: str
    """Kind, reduction, rows and images of the scores of the main ranking."""
    sources: list[int] | None
    """The set of sources that the caller gave beside the curves."""

    @property
    def ranking(self) -> list[int]:
        """Sources of the (deepest) target in the order of the first ranking."""
        return self.orders[0].sources[self.targets[-1]]

    @property
    def rankings(self) -> list[Ranking]:
        """The rankings, each once."""
        return list(dict.fromkeys(order.ranking for order in self.orders))

    def at(self, mode: Mode, k: int, ranking: str | None = None) -> Reading:
        """The reading with the first k sources of a ranking kept, or dropped.

        By default it is the main ranking; of a random ranking it is the first draw.
        """
        first, *_ = self._find(ranking or self.orders[0].ranking, mode, k)
        return self.readings[first.name]

    def mean(self, mode: Mode, k: int, ranking: str, measure: Measure = "top1") -> Interval:
        """The mean over a ranking's draws, with its interval over images."""
        return self.readings.mean([p.name for p in self._find(ranking, mode, k)], measure)

    def source_facts(self) -> dict[str, Any]:
        """The rankings, the scores behind them, and the set that the caller gave."""
        return {
            "ranking": self.ranking,
            "rankings": self.rankings,
            "ranked_by": self.ranked_by,
            "sources": self.sources,
        }

    def caption(self) -> str:
        """One sentence on what was read and on what "recovered" means."""
        layers = ", ".join(map(str, self.targets))
        return (
            f"{self.data}, N = {self.readings.n}, layer {layers}, {self.tokens} rows, teacher "
            f"trajectory, dropped terms: {self.fill}, readout: {self.readout}, ranked by "
            f"{', '.join(self.rankings)}, L0 {self.l0:.1f}, seed {self.seed}; recovered: "
            "share of the way from the mean floor to the full reconstruction"
        )

    def shown(self) -> pd.DataFrame:
        """One row per ranking, mode and k (random orders as their mean), and one per reference."""
        from vit_clt.analysis.ablations.tables import curve_table

        return curve_table(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per ranking, draw, mode and k, with references and recovered fractions.

        `{measure}_above_full` is the difference from the full reconstruction, with its paired
        interval; `recovered_{measure}` is the share recovered above the mean floor.
        """
        references = {
            "baseline": self.readings["original"],
            "floor_zero": self.readings["floor_zero"],
            "floor_mean": self.readings["floor_mean"],
        }
        rows: list[dict[str, Any]] = []
        for point in self.points:
            row: dict[str, Any] = {
                "ranking": point.ranking,
                "draw": point.draw,
                "mode": point.mode,
                "k": point.k,
                "sources": point.sources,
                **self.readings[point.name].columns(),
            }
            row |= {name: reading.top1 for name, reading in references.items()}
            row |= {f"loss_{name}": reading.loss for name, reading in references.items()}
            if "any_hit" in row:
                row |= {f"any_hit_{name}": r.any_hit for name, r in references.items()}
            for measure in MEASURES:
                above = self.readings.difference(point.name, "full", measure)
                share = self.readings.recovered(point.name, "full", "floor_mean", measure)
                pairs = zip(
                    above.columns(f"{measure}_above_full").items(),
                    share.columns(f"recovered_{measure}").items(),
                    strict=True,
                )
                for pair in pairs:
                    row |= dict(pair)
            rows.append(row)
        return pd.DataFrame(rows)

    def metrics(self, prefix: str = "") -> list[Metric]:
        """Accuracy and loss of every point, beside the mean floor and the unaltered model.

        Points of the main ranking are named "keep_4_top1", of another "last_keep_4_top1"; random
        orders have one value, the mean over their draws.
        """
        versions = {name: [name] for name in REFERENCES[1:]}
        for point in self.points:
            main = point.ranking == self.orders[0].ranking
            name = f"{point.mode}_{point.k}" if main else f"{point.ranking}_{point.mode}_{point.k}"
            versions.setdefault(name, []).append(point.name)
        original, floor = self.readings["original"], self.readings["floor_mean"]
        return [
            self.readings.mean(points, measure).metric(
                f"{prefix}{name}_{measure}",
                UNITS[measure],
                self.readings.n,
                getattr(floor, measure),
                getattr(original, measure),
            )
            for name, points in versions.items()
            for measure in self.readings.means
        ]

    def figure(self) -> go.Figure:
        """Accuracy and loss against k, keep and drop, with the reference lines."""
        from vit_clt.analysis.ablations.curves_figure import ablation_figure

        return ablation_figure(self)

    def _find(self, ranking: str, mode: Mode, k: int) -> list[Point]:
        key = (ranking, mode, k)
        return [point for point in self.points if (point.ranking, point.mode, point.k) == key]


def ablation_curves(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    scores: SourceScores | ScoreKind = "projection",
    rankings: Sequence[Ranking] | None = None,
    sources: Iterable[int] | None = None,
    draws: int = 5,
    **options: Unpack[AblationOptions],
) -> AblationCurves:
    """Keep, and drop, the first k sources of one or several rankings, for every k from 0 to all.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        classifier: the readout.
        scores: scores to rank by, or the kind of those of the same images and rows.
        rankings: kinds of score, "last" (deepest source first), "bottom" (lowest of `scores`
            first) or "random"; by default the kind of `scores`.
        sources: a set of source layers to keep, and to drop, beside the curves.
        draws: number of random orders.
        **options: as in `keep_top_k`; each of several targets has its own first k sources, or all
            where it has fewer, and the seed is that of the random orders too.

    Raises:
        InputError: an argument is out of range, labels have no names, `vit` has a hook, or the CLT
            belongs to another model.
    """
    study = term_sets(vit, clt, data, classifier, **options)
    targets = list(study.targets)
    sources = None if sources is None else list(sources)
    given = None if sources is None else sources_at(targets, sources)
    scores = study.scores(scores)
    rankings = [scores.kind] if rankings is None else rankings
    orders = source_orders(
        scores,
        targets,
        rankings,
        rescored=partial(study.rescored, scores),
        draws=draws,
        seed=study.seed,
    )
    points = [
        Point(order.ranking, order.draw, mode, k, order.top(k))
        for order in orders
        for mode in get_args(Mode)
        for k in range(targets[-1] + 2)
    ]
    if given is not None:
        k = len(given[targets[-1]])
        points += [Point(GIVEN, 0, mode, k, given) for mode in get_args(Mode)]
    return AblationCurves(
        orders=orders,
        points=points,
        ranked_by=scores.label,
        readings=study.read({p.name: kept_sources(p.mode, p.sources_at) for p in points}),
        sources=sources,
        **study.measured(),
    )
