"""The result of `vit_clt.analysis.probing.study.probes`: what probes read, beside their floors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vit_clt.analysis.probing.places import PROBED_ROWS, Place, ProbedRows
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.readings import Reading
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

HOW_TO_READ = (
    "A factor that a probe reads at a depth is there to be read by what comes next; whether the "
    "model reads it, ablation must tell. The additive floor is the same probe fitted to the data's "
    "factors themselves, one-hot: what it leaves near chance but reads in the model, the model has "
    "worked out from them. A hand-made linear map may do better than this floor; see "
    "docs/definitions.md."
)


@dataclass(frozen=True)
class Probe:
    """The probe of one factor at one place."""

    factor: str
    place: Place
    reading: Reading
    permuted: float
    """Mean accuracy of the same probe fitted to permuted values of the factor."""
    permuted_loss: float
    """Mean cross-entropy of those probes, in nats."""
    shrinkage: float
    """Shrinkage of the covariance, chosen on a fifth of the training images."""


@dataclass(frozen=True)
class Floors:
    """How well a factor can be guessed without the model."""

    chance: float
    """Accuracy of guessing the most frequent training value."""
    chance_loss: float
    """Cross-entropy of guessing the training shares of the values, in nats."""
    additive: Reading | None
    """Reading of the same probe on the one-hot factors of the data; None but for the label of data
    that have factors."""


@dataclass(frozen=True)
class Probes(Study):
    """Probes of every factor at every place, read on test images, beside their floors."""

    name = "probe"

    probes: list[Probe]
    floors: dict[str, Floors]
    """Floors by factor."""
    layers: list[int]
    model: str
    data: str
    split: str | None
    train_data: str
    n: int
    """Number of test images."""
    n_train: int
    seed: int

    @property
    def kinds(self) -> list[ProbedRows]:
        """The kinds of rows that were read: those of `PROBED_ROWS` that the model has."""
        read = {probe.place.tokens for probe in self.probes}
        return [kind for kind in PROBED_ROWS if kind in read]

    def to_frame(self) -> pd.DataFrame:
        """One row per factor and place: accuracies as fractions, losses in nats."""
        rows = []
        for probe in self.probes:
            floors = self.floors[probe.factor]
            top1, loss = probe.reading.top1, probe.reading.loss
            reading = {"top1": top1, "low": top1.low, "high": top1.high, **loss.columns("loss")}
            row = {"factor": probe.factor, **probe.place._asdict(), **reading}
            row |= {name: getattr(probe, name) for name in ("permuted", "permuted_loss")}
            row |= {"chance": floors.chance, "chance_loss": floors.chance_loss}
            additive = floors.additive
            row |= {"additive": additive.top1 if additive else np.nan}
            row |= {"additive_loss": additive.loss if additive else np.nan}
            row |= {"shrinkage": probe.shrinkage, "n": self.n, "n_train": self.n_train}
            rows.append(row)
        return pd.DataFrame(rows)

    def metrics(self) -> list[Metric]:
        """Every reading, with permuted values as its floor and chance as its baseline.

        Names are "{factor}_{tokens}_{stage}_{layer}_top1" and "_loss"; those of the additive floor
        are "{factor}_additive_top1" and "_loss".
        """
        metrics = []
        for p in self.probes:
            name = "_".join(map(str, (p.factor, *p.place)))
            metrics += self._pair(name, p.factor, p.reading, p.permuted, p.permuted_loss)
        for factor, floors in self.floors.items():
            if floors.additive is not None:
                metrics += self._pair(f"{factor}_additive", factor, floors.additive, None, None)
        return metrics

    def figure(self) -> go.Figure:
        """Accuracy and loss by depth of the stream, and accuracy of x_l and y_l."""
        from vit_clt.analysis.probing.figure import probe_figure

        return probe_figure(self)

    def facts(self) -> Facts:
        """The test images, the images fitted on, the factors and the layers."""
        return Facts(
            self.data,
            self.n,
            ", ".join(self.kinds),
            "teacher",
            None,
            split=self.split,
            seed=self.seed,
            more={
                "model": self.model,
                "train_data": self.train_data,
                "n_train": self.n_train,
                "factors": list(self.floors),
                "layers": self.layers,
            },
        )

    def caption(self) -> str:
        """One sentence on the images and on the cells of `shown`."""
        return f"{self.measured_on()}; accuracy % / cross-entropy (nats)"

    def measured_on(self) -> str:
        """Data, numbers of images and seed, for captions."""
        return (
            f"{self.data}, N = {self.n}; probes fitted on {self.train_data}, "
            f"N = {self.n_train}; no CLT, seed {self.seed}"
        )

    def shown(self) -> pd.DataFrame:
        """One row per place, below those of the floors: accuracy (%) / loss (nats) by factor."""
        places: dict[Place, dict[str, str]] = {}
        for p in self.probes:
            row = places.setdefault(p.place, {"place": " ".join(map(str, p.place))})
            row[p.factor] = _text(p.reading.top1, p.reading.loss)
            row[f"{p.factor}, permuted"] = _text(p.permuted, p.permuted_loss)
        floor_rows: dict[str, dict[str, str]] = {}
        for name, floors in self.floors.items():
            chance = floor_rows.setdefault("chance", {"place": "chance"})
            chance[name] = _text(floors.chance, floors.chance_loss)
            if floors.additive is not None:
                additive = floor_rows.setdefault("additive", {"place": "additive floor"})
                additive[name] = _text(floors.additive.top1, floors.additive.loss)
        return pd.DataFrame([*floor_rows.values(), *places.values()]).fillna("")

    def printed(self) -> pd.DataFrame:
        """The rows of the floors, of the start of the stream, and of the ends of blocks."""
        shown = self.shown()
        printed = shown["place"].str.contains("chance|additive|resid_pre|resid_post")
        return shown[printed][["place", *self.floors]]

    def page(self) -> str:
        """A page with what was done, the figure, and the table."""
        from vit_clt.analysis.reporting.page import Section, render_report

        facts = {
            "Read on": f"{self.data}, N = {self.n}",
            "Fitted on": f"{self.train_data}, N = {self.n_train}",
            "Trajectory": "the unaltered model (teacher); no CLT",
            "Probe": "linear discriminant with a shrunk covariance, chosen on a fifth of the "
            "training images",
            "Patch rows": "mean over the left and mean over the right half of the patch grid, side "
            "by side",
            "Seed": str(self.seed),
        }
        note = "Accuracy in percent / cross-entropy in nats."
        sections = [
            Section("What was done", [HOW_TO_READ], facts=facts),
            Section("By depth", figures=[self.figure()]),
            Section("Every place", [note], [self.shown()]),
        ]
        lead = (
            "At which depth of a Vision Transformer can what its images show be read by a linear "
            "map?"
        )
        return render_report("Linear probes", lead, sections)

    def _pair(
        self, name: str, factor: str, r: Reading, floor: float | None, floor_loss: float | None
    ) -> list[Metric]:
        chance, loss = self.floors[factor].chance, self.floors[factor].chance_loss
        return [
            r.top1.metric(f"{name}_top1", "fraction", self.n, floor, chance),
            r.loss.metric(f"{name}_loss", "nats", self.n, floor_loss, loss),
        ]


def _text(top1: float, loss: float) -> str:
    return f"{100 * top1:.1f} / {loss:.3f}"
