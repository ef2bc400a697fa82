"""The cost of thresholds in place of top-k: L0, R^2, accuracy and loss of both on the same images.

A CLT and the one that `vit_clt.interchange.thresholds.with_thresholds` makes of it share their
weights and differ in which features fire. For rows of each token kind, on other images than the
thresholds were fitted on, two things are measured: L0 and R^2 on the teacher trajectory (mean over
layers, and the lowest R^2 of a layer, which a mean hides), and accuracy and loss with
those rows of all MLPs replaced (stream inputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from vit_clt.analysis.fit.cascade_study import Cascade, cascade
from vit_clt.analysis.fit.reconstruction_study import Reconstruction, reconstructions
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.readings import MEASURES, UNITS, Measure, accuracy_and_loss
from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

_UNITS: dict[str, str] = {"l0": "count", "r2": "fraction", "fvu": "fraction"}
_UNITS |= {measure: UNITS[measure] for measure in MEASURES}


@dataclass(frozen=True)
class ThresholdCost(Study):
    """L0, fit, accuracy and loss of a CLT with top-k and of the same CLT with thresholds."""

    name = "thresholds"

    frame: pd.DataFrame
    """One row per token kind. Columns: tokens; l0, r2, fvu (means over layers, teacher trajectory),
    top1 and loss (nats) with all MLPs replaced there, each with _before (top-k), _after
    (thresholds) and _change (after - before); top1 and loss also with _change_low, _change_high
    (paired over images), _baseline (unaltered), _floor_mean and _floor_zero; lowest_r2_before and
    _after, the lowest R^2 of any layer, and lowest_r2_layer_before and _after, that layer (NaN and
    -1 where no layer has one); n (images)."""
    readout: str
    """Name of the readout of classes."""
    fitted_on: str
    """Name and number of the images that the thresholds were fitted on."""
    data: str
    split: str | None
    seed: int
    """Seed of the bootstrap."""

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.frame["n"].iloc[0])

    def to_frame(self) -> pd.DataFrame:
        """One row per token kind."""
        return self.frame

    def facts(self) -> Facts:
        """The images, and the L0 on all rows."""
        rows = self.frame.set_index("tokens")
        return Facts(
            self.data,
            self.n,
            "cls patch all",
            "stream; teacher for L0, R² and FVU",
            float(rows.loc["all", "l0_after"]),
            self.split,
            seed=self.seed,
            more={
                "l0_before": float(rows.loc["all", "l0_before"]),
                "readout": self.readout,
                "floor": "R² 0, FVU 1; all MLPs' rows at their mean over the images",
                "baseline": "the same CLT with top-k",
                "unaltered": {
                    measure: float(self.frame[f"{measure}_baseline"].iloc[0])
                    for measure in MEASURES
                },
                "thresholds_fitted_on": self.fitted_on,
            },
        )

    def caption(self) -> str:
        """One sentence on the images fitted and measured on, and on what was measured."""
        return (
            f"thresholds fitted on {self.fitted_on}; measured on {self.data}, N = {self.n}: L0 and "
            "R2 (means over layers, and the lowest R2 of a layer) on the teacher trajectory, top-1 "
            f"% / loss (nats) with all MLPs replaced (stream), readout: {self.readout}, seed "
            f"{self.seed}"
        )

    def shown(self) -> pd.DataFrame:
        """Of each token kind both CLTs, the change in loss and both floors; the unaltered model."""
        rows = []
        for r in self.frame.to_dict("records"):
            tokens = r["tokens"]
            for version, title in (("before", "top-k"), ("after", "thresholds")):
                l0, r2 = f"{r[f'l0_{version}']:.2f}", f"{r[f'r2_{version}']:.4f}"
                layer = int(r[f"lowest_r2_layer_{version}"])
                lowest = "undefined" if layer < 0 else f"{r[f'lowest_r2_{version}']:.4f} at {layer}"
                rows.append((f"{tokens} {title}", l0, r2, lowest, _cell(r, version)))
            change = f"{r['loss_change']:+.4f} [{r['loss_change_low']:+.4f}, "
            rows += [
                (f"{tokens} change in loss", "", "", "", f"{change}{r['loss_change_high']:+.4f}]"),
                (f"{tokens} floor: mean", "", "0", "0", _cell(r, "floor_mean")),
                (f"{tokens} floor: zero", "", "", "", _cell(r, "floor_zero")),
            ]
        rows.append(("unaltered", "", "", "", _cell(self.frame.iloc[0], "baseline")))
        columns = ["rows", "L0", "R2", "lowest R2 at layer", "top-1 % / loss"]
        return pd.DataFrame(rows, columns=columns)

    def metrics(self) -> list[Metric]:
        """Every number with thresholds, with that of top-k as baseline, and every change.

        The floor is 0 for R^2, 1 for FVU, and for accuracy and loss the MLP rows at their mean. The
        lowest R^2 before and after may be of different layers: both layers are given, and there is
        no change.
        """
        metrics, fixed_floors = [], {"r2": 0.0, "fvu": 1.0}
        for row in self.frame.to_dict("records"):
            n = row["n"]
            for name, unit in _UNITS.items():
                before, after = row[f"{name}_before"], row[f"{name}_after"]
                floor = fixed_floors.get(name, row.get(f"{name}_floor_mean"))
                ends = [row.get(f"{name}_change_{end}") for end in ("low", "high")]
                full = f"{row['tokens']}_{name}"
                metrics += [
                    Metric(full, after, unit, n, floor=floor, baseline=before),
                    Metric(f"{full}_change", row[f"{name}_change"], unit, n, *ends),
                ]
            lowest = f"{row['tokens']}_lowest_r2"
            ends = [row[f"lowest_r2_{version}"] for version in ("before", "after")]
            metrics.append(Metric(lowest, ends[1], "fraction", n, floor=0.0, baseline=ends[0]))
            metrics += [
                Metric(f"{lowest}_layer_{version}", row[f"lowest_r2_layer_{version}"], "count", n)
                for version in ("before", "after")
            ]
        return metrics

    def figure(self) -> go.Figure:
        """L0, R^2, accuracy and loss per token kind, with top-k and with thresholds."""
        from vit_clt.analysis.fit.threshold_figure import threshold_figure

        return threshold_figure(self)


@torch.no_grad()
def threshold_cost(
    vit: HookedViT,
    before: CrossLayerTranscoder,
    after: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    fitted_on: str = "unnamed images",
    seed: int = 0,
    progress: bool = False,
) -> ThresholdCost:
    """Measure what a CLT loses when thresholds take the place of top-k.

    Args:
        vit: the teacher, with no hooks attached.
        before: the CLT with top-k.
        after: the same CLT with thresholds.
        data: labelled images that neither CLT nor thresholds were fitted on.
        classifier: the readout.
        fitted_on: name and number of the images the thresholds were fitted on, for captions.
        seed: seed of the bootstrap.
        progress: show progress bars.

    Raises:
        InputError: a CLT belongs to another model, labels have no names, or `vit` has a hook.
    """
    kinds = vit.cfg.rows.kinds
    clts = {"before": before, "after": after}
    fits = reconstructions(vit, clts, data, progress=progress).by_clt()
    cascades = {
        name: cascade(
            vit, clt, data, classifier, tokens=kinds, first_layers=[0], seed=seed, progress=progress
        )
        for name, clt in clts.items()
    }
    rows = []
    for kind in kinds:
        row: dict[str, Any] = {"tokens": kind}
        for column in ("l0", "r2", "fvu"):
            values = {name: fit.mean(kind, column) for name, fit in fits.items()}
            row |= _before_and_after(column, values)
        for version, fit in fits.items():
            row |= _lowest_r2(fit, kind, version)
        for measure in MEASURES:
            row |= _readings(cascades, kind, measure)
        rows.append({**row, "n": len(data)})
    return ThresholdCost(
        pd.DataFrame(rows), classifier.name, fitted_on, data.name, data.split, seed
    )


def _cell(row: Mapping[str, Any] | pd.Series, version: str) -> str:
    return accuracy_and_loss(row[f"top1_{version}"], row[f"loss_{version}"])


def _before_and_after(name: str, values: dict[str, float]) -> dict[str, float]:
    ends = {f"{name}_{end}": value for end, value in values.items()}
    return {**ends, f"{name}_change": values["after"] - values["before"]}


def _lowest_r2(fit: Reconstruction, kind: TokenKind, version: str) -> dict[str, Any]:
    r2 = fit.frame[fit.frame["tokens"] == kind].set_index("layer")["r2"].dropna()
    value, layer = (float(r2.min()), int(r2.idxmin())) if len(r2) else (float("nan"), -1)
    return {f"lowest_r2_{version}": value, f"lowest_r2_layer_{version}": layer}


def _readings(cascades: dict[str, Cascade], kind: TokenKind, measure: Measure) -> dict[str, Any]:
    """Cells of one measure; both CLTs were read on the same images with the same resamples."""
    replaced = f"{kind}_stream_0"
    values = {name: c.readings.mean([replaced], measure) for name, c in cascades.items()}
    before, after = (c.readings.draws(replaced, measure) for c in cascades.values())
    change = Interval.of(values["after"] - values["before"], after - before)
    cells: dict[str, Any] = {f"{measure}_{name}": value for name, value in values.items()}
    cells |= change.columns(f"{measure}_change")
    versions = {"baseline": "original", "floor_mean": f"{kind}_mean_0"}
    for column, version in {**versions, "floor_zero": f"{kind}_zero_0"}.items():
        cells[f"{measure}_{column}"] = cascades["before"].readings.mean([version], measure)
    return cells
