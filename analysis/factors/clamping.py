"""Features set to another value's codes: how often the answer follows
(`vit_clt.analysis.factors.clamping_study`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Int

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.analysis.stats.names import layers_text
from vit_clt.choices import Region
from vit_clt.hooks.rows import REGION_NAMES
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Clamp(Study):
    """How often the answer follows, per version: "original", "own", "group", "random 0", ..."""

    name = "clamp"

    moved: dict[str, np.ndarray]
    """Per image: is the top class that of the clamped value?"""
    stayed: dict[str, np.ndarray]
    """Per image: is it still the image's own?"""
    moved_loss: dict[str, np.ndarray]
    """Per image: cross-entropy (nats) of the class of the clamped value."""
    stayed_loss: dict[str, np.ndarray]
    """Per image: cross-entropy of the image's own class."""
    origin: Int[np.ndarray, " image"]
    """The factor's value b in the image."""
    target: Int[np.ndarray, " image"]
    """The value a it is clamped to."""
    factor: str
    n_features: int
    overlap: float
    """Share of the group that a random set holds too, mean over sets."""
    layers: list[int]
    region: Region
    l0: float
    """Active features a row of the region and layer, over the layers that sets are of."""
    chance: float
    """Share of images whose class is moved to by a guess: 1 / classes."""
    templates: str
    source: str
    """Images that the means come from."""
    data: str
    split: str | None
    seed: int

    @property
    def n(self) -> int:
        """Images, each clamped to one other value."""
        return len(self.origin)

    @property
    def n_pairs(self) -> int:
        """Different (a, b) among them."""
        return len(set(zip(self.target.tolist(), self.origin.tolist(), strict=True)))

    def to_frame(self) -> pd.DataFrame:
        """One row per version: shares that moved and stayed with Wilson intervals, losses in nats
        with bootstrap intervals."""
        from scipy.stats import binomtest  # takes a second to import

        rows = []
        for name in self.moved:
            row: dict[str, object] = {"features": name}
            for what in ("moved", "stayed"):
                hits = getattr(self, what)[name]
                ends = binomtest(int(hits.sum()), self.n).proportion_ci(method="wilson")
                row |= Interval(hits.mean(), ends.low, ends.high).columns(what)
                losses = getattr(self, f"{what}_loss")[name]
                draws = bootstrap_means(losses[:, None], self.seed)[:, 0]
                row |= Interval.of(losses.mean(), draws).columns(f"{what}_loss")
            rows.append({**row, "chance": self.chance, "n": self.n, "pairs": self.n_pairs})
        return pd.DataFrame(rows)

    def facts(self) -> Facts:
        """Codes of the altered stream, in one region."""
        return Facts(
            self.data,
            self.n,
            self.region,
            "stream with error nodes",
            self.l0,
            split=self.split,
            fill=f"mean codes by {self.factor}",
            seed=self.seed,
            more={
                "templates": self.templates,
                "factor": self.factor,
                "source": self.source,
                "layers": self.layers,
                "n_features": self.n_features,
                "overlap": self.overlap,
            },
        )

    def caption(self) -> str:
        """What is set to what, where, and what it is compared with."""
        return (
            f"{self.data}, N = {self.n}: {self.n_features} features of layers "
            f"{layers_text(self.layers)} on {REGION_NAMES[self.region]} (L0 {self.l0:.1f}) at "
            f"their means over images of {self.source} with another value of {self.factor}; CLT "
            "with error nodes, stream inputs; random: as many that fire equally often; templates: "
            f"{self.templates}, seed {self.seed}; chance {100 * self.chance:.0f} %"
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
        """Every share and loss; floor: random sets' mean, baseline: unaltered."""
        frame = self.to_frame().set_index("features")
        random = frame[frame.index.str.startswith("random")]
        found = []
        for name, row in frame.iterrows():
            for what in ("moved", "stayed", "moved_loss", "stayed_loss"):
                found.append(
                    Interval.from_columns(row.to_dict(), what).metric(
                        f"{str(name).replace(' ', '_')}_{what}",
                        "nats" if what.endswith("loss") else "fraction",
                        self.n,
                        float(random[what].mean()) if name == "group" else None,
                        float(frame.loc["original", what]),
                    )
                )
        return found

    def figure(self) -> go.Figure:
        """Shares that moved and stayed per version, and how often each pair of values moved."""
        from vit_clt.analysis.factors.clamping_figure import clamp_figure

        return clamp_figure(self)
