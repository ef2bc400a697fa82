"""The result of `vit_clt.analysis.causal.study.causal_effects`: what ablating a layer changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from vit_clt.analysis.causal.targets import PATHS, Path, Read, TargetEffects
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.names import LayerSet, layers_text
from vit_clt.analysis.stats.readings import UNITS, Reading, Readings
from vit_clt.choices import Fill, Site, TokenKind
from vit_clt.errors import InputError
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class CausalEffects(Study):
    """Effects of ablating a source on every target above it, and sets of layers on the output."""

    name = "causal"

    on_targets: Mapping[tuple[Path, Read], TargetEffects]
    """Effects on what MLP_l puts out ("y") and reads ("x"), along all paths or the direct one."""
    readings: Readings | None
    """Readings of "original" and of "{path} {layers}" for every set of layers; None without a
    classifier."""
    layer_sets: list[LayerSet]
    site: Site
    tokens: TokenKind
    """Rows scored at the targets."""
    ablated: TokenKind
    """Rows overwritten at the sources."""
    fill: Fill
    readout: str | None
    """Name of the classifier's prompts; None without a classifier."""
    model: str
    data: str
    split: str | None
    n: int
    n_layers: int
    seed: int
    """Seed of donors and of bootstraps."""

    def matrix(self, path: Path = "total", read: Read = "y") -> Float[np.ndarray, "target source"]:
        """Effects by target and source; NaN where the target does not read the source."""
        return self.on_targets[path, read].matrix

    def draws(
        self, path: Path = "total", read: Read = "y"
    ) -> Float[np.ndarray, "draw target source"]:
        """Bootstrap resamples of `matrix`; all paths share their draws of the images."""
        return self.on_targets[path, read].draws(self.seed)

    def loss_rise(
        self, path: Path = "total"
    ) -> tuple[Float[np.ndarray, " source"], Float[np.ndarray, "draw source"]]:
        """Rise in cross-entropy (nats) where each layer is ablated alone, and its resamples.

        Raises:
            InputError: the effects were measured without a classifier.
        """
        if self.readings is None:
            raise InputError("the effects hold no readings; causal_effects needs a classifier.")
        single = [self.readings.names.index(f"{path} {s}") for s in range(self.n_layers)]
        original = self.readings.names.index("original")
        means, samples = self.readings.means["loss"], self.readings.samples["loss"]
        return means[single] - means[original], samples[:, single] - samples[:, [original]]

    def to_frame(self) -> pd.DataFrame:
        """One row per number: path, layers ablated, target (a layer or "output"), measure.

        The measures of a layer are the effects on "y" and "x". Those of the output are "top1"
        (fraction), "loss" (nats) and, where several classes an image are known, "any_hit"; those
        with "delta_" are differences from the unaltered model, paired over images. Their floor is
        the model with every layer ablated.
        """
        rows: list[dict[str, Any]] = []
        for (path, read), effects in self.on_targets.items():
            matrix, draws = effects.matrix, effects.draws(self.seed)
            for l, s in np.argwhere(np.isfinite(matrix)).tolist():
                key = {"path": path, "layers": str(s), "target": str(l), "measure": read}
                effect = Interval.of(matrix[l, s], draws[:, l, s])
                rows.append({**key, **self._number(effect, "fraction", 0.0, None)})
        return pd.DataFrame([*rows, *self._output_rows()])

    def metrics(self) -> list[Metric]:
        """Every number of `to_frame`, named "{path}_{source}_to_{target}_{measure}"."""
        return [
            Interval(r.value, r.low, r.high).metric(
                f"{r.path}_{r.layers}_to_{r.target}_{r.measure}",
                r.unit,
                r.n,
                None if pd.isna(r.floor) else r.floor,
                r.baseline,
            )
            for r in self.to_frame().itertuples()
        ]

    def figure(self) -> go.Figure:
        """Heatmaps of total and direct effects; accuracy and loss by layer, and by range."""
        from vit_clt.analysis.causal.figure import causal_figure

        return causal_figure(self)

    def facts(self) -> Facts:
        """The images, and what was ablated; CLT and L0 are None, since no CLT takes part."""
        return Facts(
            self.data,
            self.n,
            self.tokens,
            "teacher",
            None,
            split=self.split,
            fill=self.fill,
            seed=self.seed,
            more={
                "ablated": self.ablated,
                "site": self.site,
                "readout": self.readout,
                "model": self.model,
                "clt": None,
            },
        )

    def caption(self) -> str:
        """One sentence on what was ablated and on the cells of `shown`."""
        ablated = (
            f"{self.data}, N = {self.n}, {self.site} outputs, {self.ablated} rows ablated "
            f"(fill: {self.fill}, seed {self.seed})"
        )
        if self.readings is None:
            return f"{ablated}; effects on {self.tokens} rows of y_l and x_l, as fractions"
        return f"{ablated}, readout: {self.readout}; top-1 % / loss (nats)"

    def shown(self) -> pd.DataFrame:
        """One row per set of layers: top-1 (%), loss (nats) and change in loss, along each path.

        Without a classifier it is `to_frame`, the effects on targets.
        """
        if self.readings is None:
            return self.to_frame()
        rows = [{"layers": "none (unaltered)", "total": _reading_text(self.readings["original"])}]
        for layers in map(layers_text, self.layer_sets):
            row = {"layers": layers}
            for path in PATHS:
                rise = self.readings.difference(f"{path} {layers}", "original", "loss")
                row[path] = _reading_text(self.readings[f"{path} {layers}"])
                row[f"{path}, Δ loss"] = rise.text("+.4f")
            rows.append(row)
        return pd.DataFrame(rows, columns=list(rows[-1])).fillna("")

    def page(self) -> str:
        """A page with what was ablated, the figure, and the readings of every set of layers."""
        from vit_clt.analysis.causal.page import causal_page

        return causal_page(self)

    def _output_rows(self) -> Iterator[dict[str, Any]]:
        if self.readings is None:
            return
        all_layers = f"total {layers_text(range(self.n_layers))}"
        versions = [(path, layers_text(layers)) for path in PATHS for layers in self.layer_sets]
        for measure in self.readings.means:
            lowest, original = (
                self.readings.mean([name], measure) for name in (all_layers, "original")
            )
            for path, layers in versions:
                name = f"{path} {layers}"
                key = {"path": path, "layers": layers, "target": "output"}
                level = self.readings.mean([name], measure)
                change = self.readings.difference(name, "original", measure)
                for kind, value, baseline, floor in (
                    (measure, level, original, lowest),
                    (f"delta_{measure}", change, 0.0, lowest - original),
                ):
                    number = self._number(value, UNITS[measure], baseline, floor)
                    yield {**key, "measure": kind, **number}

    def _number(
        self, value: Interval, unit: str, baseline: float, floor: float | None
    ) -> dict[str, Any]:
        return {
            "unit": unit,
            "value": value,
            "low": value.low,
            "high": value.high,
            "n": self.n,
            "baseline": baseline,
            "floor": floor,
        }


def _reading_text(reading: Reading) -> str:
    return f"{100 * reading.top1:.2f} / {reading.loss:.4f}"
