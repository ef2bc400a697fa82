"""The result of clamping features to codes of another factor value: does the answer follow?

`vit_clt.analysis.factors.clamping_study` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Int

from vit_clt.analysis.factors.edited_sets import EditedSets
from vit_clt.analysis.reporting.study import Facts
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.analysis.stats.names import layers_text
from vit_clt.hooks.rows import REGION_NAMES
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class Clamp(EditedSets):
    """How often the answer follows, per version of the model.

    The versions are "original" (unaltered), "own" (the group at the means of the image's own
    value), "group" (the group at those of another value), and "random 0", "random 1", ...
    (random features in place of the group).
    """

    name = "clamp"

    moved: dict[str, np.ndarray]
    """By version and image: whether the top class is that of the clamped value."""
    stayed: dict[str, np.ndarray]
    """By version and image: whether the top class is still the image's own."""
    moved_loss: dict[str, np.ndarray]
    """By version and image: cross-entropy (nats) of the class of the clamped value."""
    stayed_loss: dict[str, np.ndarray]
    """By version and image: cross-entropy (nats) of the image's own class."""
    origin: Int[np.ndarray, " image"]
    """The factor's value in each image."""
    target: Int[np.ndarray, " image"]
    """The value that each image is clamped to."""
    factor: str
    """Name of the factor."""
    chance: float
    """Share of images that would move by a random guess: 1 / number of classes."""
    mean_data: str
    """Name of the images that the mean codes come from."""

    @property
    def n(self) -> int:
        """Number of images; each is clamped to one other value."""
        return len(self.origin)

    @property
    def n_pairs(self) -> int:
        """Number of different pairs of the clamped and the original value."""
        return len(set(zip(self.target.tolist(), self.origin.tolist(), strict=True)))

    def to_frame(self) -> pd.DataFrame:
        """One row per version: the shares of images that moved and that stayed, with Wilson
        intervals, and losses in nats with bootstrap intervals."""
        from scipy.stats import binomtest  # takes a second to import

        rows = []
        for name in self.moved:
            row: dict[str, object] = {"features": name}
            for answer in ("moved", "stayed"):
                hits = getattr(self, answer)[name]
                ends = binomtest(int(hits.sum()), self.n).proportion_ci(method="wilson")
                row |= Interval(hits.mean(), ends.low, ends.high).columns(answer)
                losses = getattr(self, f"{answer}_loss")[name]
                draws = bootstrap_means(losses[:, None], self.seed)[:, 0]
                row |= Interval.of(losses.mean(), draws).columns(f"{answer}_loss")
            rows.append({**row, "chance": self.chance, "n": self.n, "pairs": self.n_pairs})
        return pd.DataFrame(rows)

    def facts(self) -> Facts:
        """Images, region, and the codes that the group is set to."""
        return self.facts_with(
            f"mean codes by {self.factor}", factor=self.factor, source=self.mean_data
        )

    def caption(self) -> str:
        """The features, the values they are clamped to, the region, and the comparison."""
        return (
            f"{self.data}, N = {self.n}: {self.n_features} features of layers "
            f"{layers_text(self.layers)} on {REGION_NAMES[self.region]} (L0 {self.l0:.1f}) at "
            f"their means over images of {self.mean_data} with another value of {self.factor}; CLT "
            "with error nodes, stream inputs; random: as many that fire equally often; readout: "
            f"{self.readout}, seed {self.seed}; chance {100 * self.chance:.0f} %"
        )

    def shown(self) -> pd.DataFrame:
        """One row per version, as text."""
        rows = self.to_frame().to_dict("records")
        return pd.DataFrame(
            {
                "features": row["features"],
                "moved (%)": Interval.from_columns(row, "moved").text(".1f", 100),
                "stayed (%)": Interval.from_columns(row, "stayed").text(".1f", 100),
                "moved, loss (nats)": Interval.from_columns(row, "moved_loss").text(".4f"),
                "stayed, loss (nats)": Interval.from_columns(row, "stayed_loss").text(".4f"),
            }
            for row in rows
        )

    def metrics(self) -> list[Metric]:
        """Every share and loss, with the mean of random sets as floor and the unaltered model as
        baseline."""
        frame = self.to_frame().set_index("features")
        random = frame[frame.index.str.startswith("random")]
        metrics = []
        for name, row in frame.iterrows():
            for column in ("moved", "stayed", "moved_loss", "stayed_loss"):
                metrics.append(
                    Interval.from_columns(row.to_dict(), column).metric(
                        f"{str(name).replace(' ', '_')}_{column}",
                        "nats" if column.endswith("loss") else "fraction",
                        self.n,
                        float(random[column].mean()) if name == "group" else None,
                        float(frame.loc["original", column]),
                    )
                )
        return metrics

    def figure(self) -> go.Figure:
        """Shares that moved and stayed per version, and how often each pair of values moved."""
        from vit_clt.analysis.factors.clamping_figure import clamp_figure

        return clamp_figure(self)
