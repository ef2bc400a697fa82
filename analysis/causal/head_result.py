"""The result of `vit_clt.analysis.causal.head_ablations`: what ablating one head changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.analysis.stats.readings import UNITS, Readings, accuracy_and_loss
from vit_clt.choices import Fill, TokenKind
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

HeadPath = Literal["total", "direct", "random"]
"""Total and direct effects, and the total effect of the same change turned at random."""
HEAD_PATHS: tuple[HeadPath, ...] = get_args(HeadPath)
_PRINTED = 12  # heads in the table of a terminal


def head_name(path: HeadPath, layer: int, head: int) -> str:
    """The version of the model in which one head is ablated, as readings name it."""
    return f"{path} {layer}.{head}"


@dataclass(frozen=True)
class HeadAblations(Study):
    """Top-1, loss and the label's logit with each attention head ablated alone."""

    name = "head_ablations"

    readings: Readings
    """Readings of "original", "every head", and "{path} {layer}.{head}" for every head."""
    contrasts: Float[np.ndarray, "image version"]
    """The label's logit less the mean logit of all classes, by version in the order of the
    readings."""
    ablated: TokenKind
    fill: Fill
    readout: str
    model: str
    data: str
    split: str | None
    n_layers: int
    n_heads: int
    seed: int
    """Seed of donors, of random turns and of bootstraps."""

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Layer and number of every head, layer by layer."""
        return [(l, h) for l in range(self.n_layers) for h in range(self.n_heads)]

    def logit_changes(self, path: HeadPath = "total") -> Float[np.ndarray, "image head"]:
        """Change of the label's logit (less the mean of all classes) by image and head."""
        versions = [self._version(head_name(path, *head)) for head in self.heads]
        return self.contrasts[:, versions] - self.contrasts[:, [self._version("original")]]

    def changes(
        self, path: HeadPath, measure: Literal["loss", "top1", "logit"]
    ) -> Float[np.ndarray, "layer head"]:
        """The mean change of a measure by layer and head: ablated less unaltered."""
        values = [float(self._change(path, measure, head)) for head in self.heads]
        return np.array(values).reshape(self.n_layers, self.n_heads)

    def to_frame(self) -> pd.DataFrame:
        """One row per number: path, layer, head, measure.

        Measures are "top1" (fraction), "loss" (nats) and, where several classes an image are known,
        "any_hit", each with its difference "delta_" from the unaltered model, and "delta_logit"
        (logits): the label's logit less the mean of all classes. The floor of "total" is the model
        with every head ablated; the others have none.
        """
        rows: list[dict[str, Any]] = []
        for path in HEAD_PATHS:
            for head in self.heads:
                rows += self._rows(path, head)
        return pd.DataFrame(rows)

    def metrics(self) -> list[Metric]:
        """Every number of `to_frame`, named "{path}_{layer}.{head}_{measure}"."""
        return [
            Interval(r.value, r.low, r.high).metric(
                f"{r.path}_{r.layer}.{r.head}_{r.measure}",
                r.unit,
                r.n,
                None if pd.isna(r.floor) else r.floor,
                r.baseline,
            )
            for r in self.to_frame().itertuples()
        ]

    def facts(self) -> Facts:
        """The images, and what was ablated; CLT and L0 are None, since no CLT takes part."""
        return Facts(
            self.data,
            len(self.contrasts),
            self.ablated,
            "teacher",
            None,
            split=self.split,
            fill=self.fill,
            seed=self.seed,
            more={
                "ablated": self.ablated,
                "site": "head",
                "readout": self.readout,
                "model": self.model,
                "clt": None,
                "floor": "every head of every layer ablated",
                "control": "the same change turned at random",
            },
        )

    def caption(self) -> str:
        """One sentence on what was ablated and on the cells of `shown`."""
        return (
            f"{self.data}, N = {len(self.contrasts)}, single attention heads ablated on "
            f"{self.ablated} rows (fill: {self.fill}, seed {self.seed}), readout: {self.readout}; "
            "top-1 % / loss (nats), changes against the unaltered model"
        )

    def shown(self) -> pd.DataFrame:
        """One row per head, largest change of loss first, below the model and the floor."""
        rises = np.abs(self.changes("total", "loss")).ravel()
        order = [self.heads[i] for i in np.argsort(-rises, kind="stable")]
        rows = [
            {"head": name, "total": self._text(version), "Δ loss": change, "Δ logit": logit}
            for name, version, change, logit in (
                ("none (unaltered)", "original", "", ""),
                ("every head (floor)", "every head", *self._texts("every head")),
            )
        ]
        for l, h in order:
            row = {"head": f"{l}.{h}", "total": self._text(head_name("total", l, h))}
            row["Δ loss"], row["Δ logit"] = self._texts(head_name("total", l, h))
            for path in ("direct", "random"):
                loss, logit = self._texts(head_name(path, l, h))
                row |= {f"{path}, Δ loss": loss, f"{path}, Δ logit": logit}
            rows.append(row)
        return pd.DataFrame(rows, columns=list(rows[-1])).fillna("")

    def printed(self) -> pd.DataFrame:
        """The heads of largest change of loss alone, without the direct and random columns."""
        return self.shown().iloc[: 2 + _PRINTED, :4]

    def notes(self) -> Sequence[str]:
        """What the columns are."""
        return [
            "head: layer.number; largest change of loss first; in brackets 95 % of bootstrap draws "
            "over images, paired with the unaltered model",
            "logit: the label's less the mean of all classes; direct: only the final norm sees the "
            "change; random: the same change turned at random, everything recomputed",
            "the first heads are the largest of many on these images; intervals ignore the choice",
        ]

    def figure(self) -> go.Figure:
        """Heatmaps by layer and head: change of loss and of the label's logit."""
        from vit_clt.analysis.causal.head_figure import head_figure

        return head_figure(self)

    def _rows(self, path: HeadPath, head: tuple[int, int]) -> Iterator[dict[str, Any]]:
        version, n = head_name(path, *head), len(self.contrasts)
        key = {"path": path, "layer": head[0], "head": head[1]}
        measures: list[tuple[str, str, Interval, float, float]] = []
        for measure in self.readings.means:
            lowest, original = (
                float(self.readings.mean([name], measure)) for name in ("every head", "original")
            )
            unit, level = UNITS[measure], self.readings.mean([version], measure)
            change = self.readings.difference(version, "original", measure)
            measures.append((measure, unit, level, original, lowest))
            measures.append((f"delta_{measure}", unit, change, 0.0, lowest - original))
        lowest = float(self._logit_change("every head"))
        measures.append(("delta_logit", "logits", self._logit_change(version), 0.0, lowest))
        for name, unit, value, baseline, every in measures:
            floor = every if path == "total" else float("nan")
            number = {"unit": unit, "value": float(value), "low": value.low, "high": value.high}
            levels = {"n": n, "baseline": baseline, "floor": floor}
            yield key | {"measure": name} | number | levels

    def _change(self, path: HeadPath, measure: str, head: tuple[int, int]) -> Interval:
        version = head_name(path, *head)
        if measure == "logit":
            return self._logit_change(version)
        return self.readings.difference(version, "original", measure)  # type: ignore[arg-type]

    def _logit_change(self, version: str) -> Interval:
        means, draws = self._logit_means
        i, original = self._version(version), self._version("original")
        return Interval.of(float(means[i] - means[original]), draws[:, i] - draws[:, original])

    @cached_property
    def _logit_means(self) -> tuple[np.ndarray, np.ndarray]:
        return self.contrasts.mean(0), bootstrap_means(self.contrasts, self.seed)

    def _version(self, name: str) -> int:
        return self.readings.names.index(name)

    def _text(self, version: str) -> str:
        reading = self.readings[version]
        return accuracy_and_loss(reading.top1, reading.loss)

    def _texts(self, version: str) -> tuple[str, str]:
        """The changes of loss and logit as text."""
        loss = self.readings.difference(version, "original", "loss")
        return loss.text("+.4f"), self._logit_change(version).text("+.3f")
