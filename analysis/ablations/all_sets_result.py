"""Readings of all sets of k sources, and the ranks of the sets that rankings choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from vit_clt.analysis.ablations.result import AblationStudy
from vit_clt.analysis.ablations.term_sets import REFERENCES
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.readings import Measure
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

Set = tuple[int, ...]


@dataclass(frozen=True)
class MarkedSet:
    """The first k sources of a ranking, and the rank of this set among all sets of k."""

    name: str
    """Name of the ranking."""
    sources: Set
    top1: float
    loss: float
    better: dict[Measure, float]
    """Share of the sets that are strictly better: higher accuracy, lower loss."""
    rank: dict[Measure, int]
    """One more than the number of sets that are strictly better."""


@dataclass(frozen=True, kw_only=True)
class KeepSets(AblationStudy):
    """Accuracy and loss of all sets of k sources, or of a sample, and the ranks of marked sets."""

    name = "keep_sets"

    sets: list[Set]
    top1: Float[Tensor, " set"]
    loss: Float[Tensor, " set"]
    marked: list[MarkedSet]
    """The chosen set first, then those of the other rankings."""
    n_possible: int
    """Number of all sets of k sources; more than `sets` has where those are a sample."""
    scores: list[float]
    """The score of each source at the target."""
    ranked_by: str
    """Kind, reduction, rows and images of the scores."""
    k: int

    @property
    def target(self) -> int:
        """The layer whose MLP rows were overwritten."""
        return self.targets[0]

    @property
    def chosen(self) -> MarkedSet:
        """The set of the k sources with the highest score."""
        return self.marked[0]

    @property
    def lead(self) -> Interval:
        """Loss of the k deepest sources minus that of the chosen set, paired over images."""
        return self.readings.difference("last", self.chosen.name, "loss")

    @property
    def sampled(self) -> bool:
        """Whether `sets` is a sample of all sets."""
        return len(self.sets) < self.n_possible

    @property
    def extent(self) -> str:
        """The number of sets as text: "all 495 sets of 4", or "10,000 of 12,870 sets of 8, ..."."""
        if self.sampled:
            return f"{len(self.sets):,} of {self.n_possible:,} sets of {self.k}, drawn at random"
        return f"all {len(self.sets):,} sets of {self.k}"

    @property
    def membership(self) -> Bool[np.ndarray, "set source"]:
        """Which sources each set holds."""
        members = np.zeros((len(self.sets), len(self.scores)), dtype=bool)
        for i, sources in enumerate(self.sets):
            members[i, list(sources)] = True
        return members

    def spearman(self) -> float:
        """Rank correlation over the sets of summed score and loss; NaN where one is constant.

        Negative where a higher score means a better set.
        """
        from scipy.stats import spearmanr  # takes a second to import

        summed = self.membership @ np.asarray(self.scores)
        loss = self.loss.numpy()
        if np.ptp(summed) == 0 or np.ptp(loss) == 0:
            return float("nan")
        return float(spearmanr(summed, loss).statistic)

    def layers(self) -> pd.DataFrame:
        """One row per source: how the loss of a set depends on whether it holds the source.

        `loss_with` and `loss_without` are means over the sets that hold it and that do not;
        `explained` is the share of the variance of the loss over sets that this membership
        explains (eta squared).
        """
        loss, members = self.loss.numpy(), self.membership
        spread = loss.var()
        rows = []
        for source, score in enumerate(self.scores):
            inside = members[:, source]
            share = inside.mean()
            with_it, without = loss[inside].mean(), loss[~inside].mean()
            between = share * (1 - share) * (with_it - without) ** 2
            rows.append(
                {
                    "source": source,
                    "score": score,
                    "loss_with": with_it,
                    "loss_without": without,
                    "explained": between / spread if spread > 0 else float("nan"),
                }
            )
        return pd.DataFrame(rows)

    def marks(self) -> pd.DataFrame:
        """One row per marked set: its reading, its ranks, and its loss above the chosen set's."""
        rows = []
        for mark in self.marked:
            above = self.readings.difference(mark.name, self.chosen.name, "loss")
            rows.append(
                {
                    "set": mark.name,
                    "sources": _text(mark.sources),
                    **self.readings[mark.name].columns(),
                    "rank_loss": mark.rank["loss"],
                    "rank_top1": mark.rank["top1"],
                    "better_loss": mark.better["loss"],
                    "better_top1": mark.better["top1"],
                    **above.columns("loss_above_chosen"),
                    "n_sets": len(self.sets),
                }
            )
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per set, lowest loss first; `marks` names the rankings that choose it."""
        names: dict[Set, list[str]] = {}
        for mark in self.marked:
            names.setdefault(mark.sources, []).append(mark.name)
        frame = pd.DataFrame(
            {
                "sources": [_text(sources) for sources in self.sets],
                "top1": self.top1.tolist(),
                "loss": self.loss.tolist(),
                "summed_score": (self.membership @ np.asarray(self.scores)).tolist(),
                "marks": [" ".join(names.get(sources, [])) for sources in self.sets],
                "n": self.readings.n,
                "loss_baseline": self.readings["original"].loss,
                "loss_floor_zero": self.readings["floor_zero"].loss,
                "loss_floor_mean": self.readings["floor_mean"].loss,
            }
        )
        return frame.sort_values("loss", kind="stable", ignore_index=True)

    def source_facts(self) -> dict[str, Any]:
        """How many sets were read, and which were marked."""
        return {
            "k": self.k,
            "sets": self.extent,
            "marked": {mark.name: list(mark.sources) for mark in self.marked},
            "ranked_by": self.ranked_by,
        }

    def caption(self) -> str:
        """One sentence on what was read, the correlation of scores and losses, and the source whose
        membership matters most."""
        layers = self.layers()
        most = layers.loc[layers["explained"].fillna(0).idxmax()]
        return (
            f"{self.data}, N = {self.readings.n}, {self.extent} sources of layer {self.target}, "
            f"{self.tokens} rows, teacher trajectory, dropped terms: {self.fill}, readout: "
            f"{self.readout}, chosen by {self.chosen.name}, L0 {self.l0:.1f}, seed {self.seed}; "
            f"rank correlation of summed score and loss {self.spearman():.2f}; membership of "
            f"layer {int(most.source)} explains most of the loss: {100 * most.explained:.0f} % "
            f"(mean {most.loss_with:.4f} nats with, {most.loss_without:.4f} without)"
        )

    def shown(self) -> pd.DataFrame:
        """One row per marked set, and one per reference."""
        from vit_clt.analysis.ablations.tables import keep_set_table

        return keep_set_table(self)

    def metrics(self, prefix: str = "") -> list[Metric]:
        """Readings of marked sets and references, ranks of marked sets, and numbers by source."""
        n, original, floor = self.readings.n, self.readings["original"], self.readings["floor_mean"]
        metrics = []
        for name in (*REFERENCES[1:], *(mark.name for mark in self.marked)):
            metrics += self.readings[name].metrics(f"{prefix}{name}", floor, original)
        for mark in self.marked:
            for measure in ("loss", "top1"):
                rank, better = mark.rank[measure], mark.better[measure]
                metrics.append(Metric(f"{prefix}{mark.name}_rank_{measure}", rank, "count", n))
                metrics.append(
                    Metric(f"{prefix}{mark.name}_better_{measure}", better, "fraction", n)
                )
        metrics.append(Metric(f"{prefix}n_sets", len(self.sets), "count", n))
        metrics.append(Metric(f"{prefix}spearman_loss", self.spearman(), "fraction", n))
        for row in self.layers().itertuples():
            name = f"{prefix}source_{row.source}"
            metrics.append(Metric(f"{name}_loss_with", row.loss_with, "nats", n))
            metrics.append(Metric(f"{name}_loss_without", row.loss_without, "nats", n))
            metrics.append(Metric(f"{name}_explained", row.explained, "fraction", n))
        return metrics

    def figure(self) -> go.Figure:
        """The losses of all sets, the marked ones among them, and each layer's membership."""
        from vit_clt.analysis.ablations.all_sets_figure import keep_set_figure

        return keep_set_figure(self)


def _text(sources: Set) -> str:
    return " ".join(map(str, sources))
