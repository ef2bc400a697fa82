"""Fidelity against sparsity: how well transcoders replace all MLPs, by L0 and number of parameters.

Cross-layer and per-layer transcoders are compared by R^2 of y^ on the teacher trajectory, and by
accuracy and loss of the model with y^ in place of every MLP. The recovered share of accuracy or
loss,

    (value - floor) / (unaltered - floor),    floor: the same MLP rows at their mean,

is undefined (NaN) where the paired interval of unaltered - floor contains 0. At equal k the two
kinds are not alike: y^_l of a CLT reads the codes of l + 1 layers, that of a per-layer transcoder
the codes of one. Each table row therefore also lists how many active codes a target reads, and the
number of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vit_clt.analysis.fit.cascade_study import Cascade, cascade
from vit_clt.analysis.fit.reconstruction_study import Reconstruction, reconstruction
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.readings import (
    MEASURES,
    UNITS,
    Measure,
    Reading,
    accuracy_and_loss,
)
from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Fidelity(Study):
    """Fit, accuracy and loss of several transcoders of one model, on the same images."""

    name = "fidelity"

    frame: pd.DataFrame
    """One row per transcoder. Columns: name; cross_layer, skip, sparsifier, k (NaN where none is
    fixed), n_features, parameters; l0 (active features a token and layer, teacher trajectory),
    l0_stream (the same with all MLPs replaced), codes_read and codes_read_last (active codes that a
    target reads a token, mean over targets and of the last one, teacher trajectory), all on rows of
    `tokens`; dead (share of features silent on all rows); r2_cls, r2_patch and r2_position_cls,
    r2_position_patch (means over layers, against the mean of all rows or of each position; teacher
    trajectory); with all MLPs replaced top1 and loss (nats), each with _low, _high, _baseline
    (unaltered), _floor_mean and _floor_zero, and recovered_top1 and recovered_loss, each with _low,
    _high; n (images)."""
    original: Reading
    """Reading of the unaltered model."""
    floor_mean: Reading
    """Reading with all MLPs' rows of `tokens` at their mean over the images."""
    floor_zero: Reading
    """Reading with the same rows at zero."""
    tokens: TokenKind
    readout: str
    data: str
    split: str | None
    seed: int
    """Seed of the bootstrap."""
    draws: dict[str, dict[Measure, Float[np.ndarray, " resample"]]]
    """By transcoder, accuracy and loss of the replaced model on the shared resamples."""
    trained_on: str | None = None
    """Data that the transcoders were trained on, as far as known."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for metrics.json on how the transcoders were made."""

    def difference(self, a: str, b: str, measure: Measure = "loss") -> Interval:
        """The measure with transcoder a less that with transcoder b, with its paired interval."""
        values = self.frame.set_index("name")[measure]
        differences = self.draws[a][measure] - self.draws[b][measure]
        return Interval.of(values[a] - values[b], differences)

    @property
    def n(self) -> int:
        """Number of images."""
        return self.original.n

    def to_frame(self) -> pd.DataFrame:
        """One row per transcoder."""
        return self.frame

    def facts(self) -> Facts:
        """The images, and the L0 of every transcoder."""
        return Facts(
            self.data,
            self.n,
            self.tokens,
            "stream; teacher for R², L0 and codes read",
            dict(zip(self.frame["name"], self.frame["l0"], strict=True)),
            self.split,
            seed=self.seed,
            more={
                "readout": self.readout,
                "floor": "all MLPs' rows at their mean over the images",
                "trained_on": self.trained_on,
                **self.provenance,
            },
        )

    def caption(self) -> str:
        """One sentence on what was measured, with the unaltered model and both floors."""
        unaltered, at_mean, at_zero = (
            accuracy_and_loss(reading.top1, reading.loss)
            for reading in (self.original, self.floor_mean, self.floor_zero)
        )
        return (
            f"{self.data}, N = {self.n}, {self.tokens} rows of all layers, stream inputs, "
            f"readout: {self.readout}, seed {self.seed}; top-1 % / loss (nats): unaltered "
            f"{unaltered}, at mean {at_mean}, at zero {at_zero}"
        )

    def shown(self) -> pd.DataFrame:
        """One row per transcoder, as text: size, codes a target reads, fit, accuracy and loss."""
        from vit_clt.analysis.reporting.style import three_digits

        return pd.DataFrame(
            {
                "name": r.name,
                "parameters": f"{r.parameters:,}",
                "L0": f"{r.l0:.1f}",
                "codes read a target, mean (last)": f"{r.codes_read:.1f} ({r.codes_read_last:.1f})",
                "dead %": f"{100 * r.dead:.1f}",
                "R² CLS": three_digits(r.r2_cls),
                "R² patch (of positions)": (
                    f"{three_digits(r.r2_patch)} ({three_digits(r.r2_position_patch)})"
                ),
                "top-1 % / loss": accuracy_and_loss(r.top1, r.loss),
                "loss recovered %": _share(r._asdict(), "recovered_loss"),
                "accuracy recovered %": _share(r._asdict(), "recovered_top1"),
            }
            for r in self.frame.itertuples()
        )

    def metrics(self) -> list[Metric]:
        """The numbers of every transcoder, beside the mean floor and the unaltered model."""
        n, metrics = self.n, []
        for r in self.frame.itertuples():
            metrics += [
                Metric(f"{r.name}_l0", r.l0, "count", n),
                Metric(f"{r.name}_codes_read", r.codes_read, "count", n),
                Metric(f"{r.name}_parameters", int(r.parameters), "count", n),
                Metric(f"{r.name}_r2_cls", r.r2_cls, "fraction", n, floor=0.0),
                Metric(f"{r.name}_r2_patch", r.r2_patch, "fraction", n, floor=0.0),
            ]
            row = r._asdict()
            for measure in MEASURES:
                value = Interval.from_columns(row, measure)
                share = Interval.from_columns(row, f"recovered_{measure}")
                references = row[f"{measure}_floor_mean"], row[f"{measure}_baseline"]
                metrics += [
                    value.metric(f"{r.name}_{measure}", UNITS[measure], n, *references),
                    share.metric(f"{r.name}_recovered_{measure}", "fraction", n, 0.0, 1.0),
                ]
        return metrics

    def figure(self) -> go.Figure:
        """R^2, loss and accuracy, measured and recovered, against measured L0."""
        from vit_clt.analysis.fit.fidelity_figure import fidelity_figure

        return fidelity_figure(self)

    def page(self) -> str:
        """A page with what may be compared, the figure, and every number."""
        from vit_clt.analysis.fit.fidelity_figure import fidelity_report

        return fidelity_report(self)


@torch.no_grad()
def fidelity(
    vit: HookedViT,
    clts: Iterable[tuple[str, CrossLayerTranscoder]],
    data: ImageData,
    classifier: Classifier,
    *,
    tokens: TokenKind = "all",
    seed: int = 0,
    trained_on: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Fidelity:
    """Measure fit, accuracy and loss of transcoders of any kind and sparsity on the same images.

    Args:
        vit: the teacher, with no hooks attached.
        clts: names and transcoders; they are taken one at a time, so that a generator may load
            them.
        data: labelled images that no transcoder was trained on.
        classifier: the readout.
        tokens: kind of rows replaced in all layers at once; codes come from the live stream.
        seed: seed of the bootstrap.
        trained_on: data that the transcoders were trained on, for the figure and metrics.json.
        provenance: further facts for metrics.json on how the transcoders were made.
        progress: show progress bars.

    Raises:
        InputError: there are no transcoders, two have the same name, one belongs to another model,
            or labels have no names.
    """
    data = as_image_data(data)
    rows: list[dict[str, Any]] = []
    draws: dict[str, dict[Measure, np.ndarray]] = {}
    replaced: Cascade | None = None
    for name, clt in clts:
        if name in {row["name"] for row in rows}:
            raise InputError("clts", f'holds "{name}" twice; expected a name for each transcoder.')
        fit = reconstruction(vit, clt, data, progress=progress)
        replaced = cascade(
            vit,
            clt,
            data,
            classifier,
            tokens=tokens,
            first_layers=[0],
            seed=seed,
            progress=progress,
        )
        rows.append({"name": name, **_size(clt.config, fit, tokens), **_readings(replaced, tokens)})
        readings = replaced.readings
        draws[name] = {
            measure: readings.draws(f"{tokens}_stream_0", measure) for measure in readings.means
        }
    if replaced is None:
        raise InputError("clts", "is empty; expected at least one transcoder.")
    names = ("original", f"{tokens}_mean_0", f"{tokens}_zero_0")
    original, floor_mean, floor_zero = (replaced.readings[name] for name in names)
    return Fidelity(
        frame=pd.DataFrame(rows),
        original=original,
        floor_mean=floor_mean,
        floor_zero=floor_zero,
        tokens=tokens,
        readout=classifier.name,
        data=data.name,
        split=data.split,
        seed=seed,
        draws=draws,
        trained_on=trained_on,
        provenance=provenance or {},
    )


def _size(config: CLTConfig, fit: Reconstruction, tokens: TokenKind) -> dict[str, Any]:
    frame = fit.frame[fit.frame["tokens"] == tokens].sort_values("layer")
    l0, k = frame["l0"].tolist(), config.sparsifier.expected_l0
    codes_read = [sum(l0[s] for s in config.sources(l)) for l in range(config.n_layers)]
    return {
        "cross_layer": config.cross_layer,
        "skip": config.skip,
        "sparsifier": config.sparsifier.name,
        "k": float("nan" if k is None else k),
        "n_features": config.n_features,
        "parameters": config.n_parameters(),
        "l0": sum(l0) / len(l0),
        "codes_read": sum(codes_read) / len(codes_read),
        "codes_read_last": codes_read[-1],
        "dead": fit.mean("all", "dead"),
        "r2_cls": fit.mean("cls"),
        "r2_patch": fit.mean("patch"),
        "r2_position_cls": fit.mean("cls", "r2_position"),
        "r2_position_patch": fit.mean("patch", "r2_position"),
    }


def _readings(replaced: Cascade, tokens: TokenKind) -> dict[str, Any]:
    name, floor = f"{tokens}_stream_0", f"{tokens}_mean_0"
    readings = replaced.readings
    cells: dict[str, Any] = {"l0_stream": replaced.l0[name]}
    references = {
        "baseline": readings["original"],
        "floor_mean": readings[floor],
        "floor_zero": readings[f"{tokens}_zero_0"],
    }
    for measure in MEASURES:
        cells |= getattr(readings[name], measure).columns(measure)
        cells |= {f"{measure}_{end}": getattr(r, measure) for end, r in references.items()}
        share = readings.recovered(name, "original", floor, measure)
        cells |= share.columns(f"recovered_{measure}")
    return {**cells, "n": readings.n}


def _share(row: Mapping[str, Any], name: str) -> str:
    share = Interval.from_columns(row, name)
    return "undefined" if isnan(share) else share.text(".1f", 100)
