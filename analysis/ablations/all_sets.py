"""All sets of k source layers of one target: where among them does the chosen one stand?

For every set S the target's rows become y^_S = b_dec + sum_{s in S} c_s (+ fills), as in
`keep_top_k`. A score that tells which sources matter should choose one of the best sets; the last k
and the lowest k show how easily that is had. Our measure, not the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from torch import Tensor

from vit_clt.analysis.ablations.keep_drop import term_sets
from vit_clt.analysis.ablations.rankings import source_orders
from vit_clt.analysis.ablations.term_sets import REFERENCES
from vit_clt.analysis.contributions.scores import ContributionScores, contribution_scores
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.readings import Measure, Readings
from vit_clt.choices import Fill, Ranking, TokenKind
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, layer_list
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot

MAX_SETS = 10_000
"""Above so many sets a seeded sample of as many stands for all."""
Set = tuple[int, ...]


@dataclass(frozen=True)
class MarkedSet:
    """A set that a rule chose, and where it stands."""

    name: str
    """The ranking whose first k sources it holds."""
    sources: Set
    top1: float
    loss: float
    better: dict[Measure, float]
    """Share of the sets that are strictly better: higher accuracy, lower loss."""
    rank: dict[Measure, int]
    """1 + how many of the sets read are strictly better."""


@dataclass(frozen=True)
class KeepSets:
    """Accuracy and loss of all sets of k sources, or of a sample, and the marked ones' places."""

    sets: list[Set]
    top1: Float[Tensor, " set"]
    loss: Float[Tensor, " set"]
    marked: list[MarkedSet]
    """The chosen set first, then those of the other rankings."""
    readings: Readings
    """The marked sets by name and the references, with intervals."""
    n_possible: int
    """C(sources, k); more than `sets` where those are a sample."""
    scores: list[float]
    """The score of each source at the target."""
    ranked_by: str
    k: int
    target: int
    tokens: TokenKind
    fill: Fill
    data: str
    seed: int
    l0: float
    """Active features a token and layer, on these rows, over the target's sources."""
    no_op: bool

    @property
    def chosen(self) -> MarkedSet:
        """The k sources with the highest score."""
        return self.marked[0]

    @property
    def lead(self) -> Interval:
        """Loss of the k deepest minus that of the chosen set, paired over images."""
        return self.readings.difference("last", self.chosen.name, "loss")

    @property
    def sampled(self) -> bool:
        """Whether the sets are a sample of all."""
        return len(self.sets) < self.n_possible

    @property
    def extent(self) -> str:
        """How many sets, for captions: "all 495 sets" or "10,000 of 12,870 sets, drawn"."""
        if self.sampled:
            return f"{len(self.sets):,} of {self.n_possible:,} sets of {self.k}, drawn at random"
        return f"all {len(self.sets):,} sets of {self.k}"

    @property
    def membership(self) -> Bool[np.ndarray, "set source"]:
        """Which sources each set holds."""
        held = np.zeros((len(self.sets), len(self.scores)), dtype=bool)
        for i, sources in enumerate(self.sets):
            held[i, list(sources)] = True
        return held

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
        """One row per source: what it changes that a set holds it.

        `loss_with` and `loss_without` are means over sets; `explained` is the share of the
        variance of the loss over sets that this one membership explains (eta squared).
        """
        loss, held = self.loss.numpy(), self.membership
        spread = loss.var()
        rows = []
        for source, score in enumerate(self.scores):
            inside = held[:, source]
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
        """One row per marked set: accuracy, loss, intervals, ranks, and how far from the chosen."""
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
        """One row per set, best loss first; `marks` names the rankings that choose it."""
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

    def metrics(self, prefix: str = "") -> list[Metric]:
        """Marked sets and references with intervals, ranks, and what explains the choice."""
        n, original, floor = self.readings.n, self.readings["original"], self.readings["floor_mean"]
        found = []
        for name in (*REFERENCES[1:], *(mark.name for mark in self.marked)):
            found += self.readings[name].metrics(f"{prefix}{name}", floor, original)
        for mark in self.marked:
            for measure in ("loss", "top1"):
                rank, better = mark.rank[measure], mark.better[measure]
                found.append(Metric(f"{prefix}{mark.name}_rank_{measure}", rank, "count", n))
                found.append(Metric(f"{prefix}{mark.name}_better_{measure}", better, "fraction", n))
        found.append(Metric(f"{prefix}n_sets", len(self.sets), "count", n))
        found.append(Metric(f"{prefix}spearman_loss", self.spearman(), "fraction", n))
        for row in self.layers().itertuples():
            name = f"{prefix}source_{row.source}"
            found.append(Metric(f"{name}_loss_with", row.loss_with, "nats", n))
            found.append(Metric(f"{name}_loss_without", row.loss_without, "nats", n))
            found.append(Metric(f"{name}_explained", row.explained, "fraction", n))
        return found

    def figure(self) -> go.Figure:
        """The losses of all sets, the marked ones among them, and each layer's membership."""
        from vit_clt.analysis.ablations.all_sets_figure import keep_set_figure

        return keep_set_figure(self)


def keep_sets(
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
) -> KeepSets:
    """Read every set of k sources of one target, from terms made once.

    On CLS rows of the last layer of a model that pools CLS a set costs a LayerNorm and two small
    products an image; at other targets and rows the blocks above run again for every set.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        zs: the zero-shot classifier.
        k: sources a set holds, at least 1 and fewer than the target has. Of more than 10,000 sets
            as many are drawn by `seed`.
        scores: the ranking that chooses; by default projection scores of the same images and rows.
        target: the layer whose MLP rows are overwritten; -1 is the last.
        tokens: rows overwritten.
        fill: what stands in for a dropped term, see `keep_top_k`.
        seed: of the sample of sets, the resample fill and the bootstrap.
        progress: show a progress bar.

    Raises:
        InputError: an argument out of range, labels without names, a hook on `vit`, or a CLT of
            another model.
    """
    data = as_image_data(data)
    [target] = layer_list(target, vit.cfg.n_layers)
    study = term_sets(vit, clt, data, zs, target, tokens, fill, seed, progress)
    n_sources = check_k(k, target, vit.cfg.n_layers)
    scores = scores or contribution_scores(vit, clt, data, tokens=tokens, progress=progress)
    rankings: list[Ranking] = [scores.kind, "centred", "norm", "last", "bottom"]
    orders = source_orders(scores, [target], rankings, seed=seed)
    picked = {o.ranking: tuple(sorted(o.sources[target][:k])) for o in orders}
    sets = _sets(n_sources, k, seed)
    # a marked set that was not drawn is read all the same, but stands outside the sample
    outside = [each for each in dict.fromkeys(picked.values()) if each not in set(sets)]
    top1, loss = study.read_means([{target: each} for each in (*sets, *outside)])
    place = {each: i for i, each in enumerate((*sets, *outside))}
    n = len(sets)
    marked = []
    for name, sources in picked.items():
        i = place[sources]
        better: dict[Measure, int] = {
            "top1": int((top1[:n] > top1[i]).sum()),
            "loss": int((loss[:n] < loss[i]).sum()),
        }
        marked.append(
            MarkedSet(
                name,
                sources,
                top1=float(top1[i]),
                loss=float(loss[i]),
                better={measure: count / n for measure, count in better.items()},
                rank={measure: count + 1 for measure, count in better.items()},
            )
        )
    return KeepSets(
        sets=sets,
        top1=top1[:n],
        loss=loss[:n],
        marked=marked,
        readings=study.read({name: {target: sources} for name, sources in picked.items()}),
        n_possible=comb(n_sources, k),
        scores=scores.matrix[target, :n_sources].tolist(),
        ranked_by=scores.label,
        k=k,
        target=target,
        tokens=tokens,
        fill=fill,
        data=data.name,
        seed=seed,
        l0=study.l0(),
        no_op=study.no_op,
    )


def check_k(k: int, target: int, n_layers: int) -> int:
    """How many sources `target` has, where sets of k of them can differ.

    Raises:
        InputError: k or the target is out of range.
    """
    [target] = layer_list(target, n_layers)
    if not 0 < k <= target:
        raise InputError(
            "k",
            f"is {k}; layer {target} has {target + 1} sources, expected at least 1 and fewer "
            "than that.",
        )
    return target + 1


def _sets(n_sources: int, k: int, seed: int) -> list[Set]:
    if comb(n_sources, k) <= MAX_SETS:
        return list(combinations(range(n_sources), k))
    rng = np.random.default_rng(seed)
    drawn: dict[Set, None] = {}
    while len(drawn) < MAX_SETS:
        orders = rng.permuted(np.tile(np.arange(n_sources), (MAX_SETS, 1)), axis=1)
        drawn |= dict.fromkeys(map(tuple, np.sort(orders[:, :k]).tolist()))
    return list(drawn)[:MAX_SETS]


def _text(sources: Set) -> str:
    return " ".join(map(str, sources))
