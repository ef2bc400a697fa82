"""Fidelity against sparsity: how well transcoders stand for all MLPs, at which L0 and size.

Cross-layer and per-layer transcoders side by side: R^2 of y^ on the teacher trajectory, and what
the model can still do with y^ in place of every MLP. What is recovered of accuracy or loss,

    (value - floor) / (unaltered - floor),    floor: the same MLP rows at their mean,

is undefined (NaN) where the paired interval of unaltered - floor contains 0. At equal k the two
kinds are not equals: y^_l of a CLT reads the codes of l + 1 layers, per layer of one. So each row
also says how many active codes a target reads, and how many parameters there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vit_clt.analysis.fit.cascade_study import Cascade, cascade
from vit_clt.analysis.fit.reconstruction_study import Reconstruction, reconstruction
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.readings import MEASURES, UNITS, Measure, Reading
from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot


@dataclass(frozen=True)
class Fidelity:
    """Several transcoders of one model, measured on the same images."""

    frame: pd.DataFrame
    """One row per transcoder. Columns: name; cross_layer, sparsifier, k (NaN where none is fixed),
    n_features, parameters; l0 (active features a token and layer, teacher trajectory), l0_stream
    (the same with all MLPs replaced), codes_read and codes_read_last (active codes that a target
    reads a token, mean over targets and of the last one, teacher trajectory), all on rows of
    `tokens`; dead (share of features silent on all rows); r2_cls, r2_patch and r2_position_cls,
    r2_position_patch (means over layers, against the mean of all rows or of each position; teacher
    trajectory); with all MLPs replaced top1 and loss (nats), each with _low, _high, _baseline
    (unaltered), _floor_mean and _floor_zero, and recovered_top1 and recovered_loss, each with _low,
    _high; n (images)."""
    original: Reading
    """The unaltered model."""
    floor_mean: Reading
    """All MLPs' rows of `tokens` at their mean over the images."""
    floor_zero: Reading
    """The same rows at zero."""
    tokens: TokenKind
    templates: str
    data: str
    seed: int
    """Of the bootstrap."""
    draws: dict[str, dict[Measure, Float[np.ndarray, " resample"]]]
    """Per transcoder, accuracy and loss of the replaced model on the shared resamples."""

    def difference(self, a: str, b: str, measure: Measure = "loss") -> Interval:
        """a - b of two transcoders with its paired interval."""
        values = self.frame.set_index("name")[measure]
        apart = self.draws[a][measure] - self.draws[b][measure]
        return Interval.of(values[a] - values[b], apart)

    @property
    def n(self) -> int:
        """Images measured on."""
        return self.original.n

    def metrics(self) -> list[Metric]:
        """Every transcoder's numbers, beside the mean floor and the unaltered model."""
        n, found = self.n, []
        for r in self.frame.itertuples():
            found += [
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
                beside = row[f"{measure}_floor_mean"], row[f"{measure}_baseline"]
                found += [
                    value.metric(f"{r.name}_{measure}", UNITS[measure], n, *beside),
                    share.metric(f"{r.name}_recovered_{measure}", "fraction", n, 0.0, 1.0),
                ]
        return found


@torch.no_grad()
def fidelity(
    vit: HookedViT,
    clts: Iterable[tuple[str, CrossLayerTranscoder]],
    data: ImageData,
    zs: ZeroShot,
    *,
    tokens: TokenKind = "all",
    seed: int = 0,
    progress: bool = False,
) -> Fidelity:
    """Measure transcoders of any kind and sparsity beside each other, floors and unaltered model.

    Args:
        vit: the teacher, with no hooks attached.
        clts: names and transcoders; taken one at a time, so that a generator may load them.
        data: labelled images that no transcoder was trained on.
        zs: the zero-shot classifier.
        tokens: rows replaced in every layer at once; codes come from the live stream.
        seed: of the bootstrap.
        progress: show progress bars.

    Raises:
        InputError: no transcoders, two of one name, one of another model, or labels without names.
    """
    data = as_image_data(data)
    rows: list[dict[str, Any]] = []
    draws: dict[str, dict[Measure, np.ndarray]] = {}
    read: Cascade | None = None
    for name, clt in clts:
        if name in {row["name"] for row in rows}:
            raise InputError("clts", f'holds "{name}" twice; expected a name for each transcoder.')
        fit = reconstruction(vit, clt, data, progress=progress)
        read = cascade(
            vit, clt, data, zs, tokens=tokens, first_layers=[0], seed=seed, progress=progress
        )
        rows.append({"name": name, **_size(clt.config, fit, tokens), **_readings(read, tokens)})
        readings = read.readings
        draws[name] = {each: readings.draws(f"{tokens}_stream_0", each) for each in readings.means}
    if read is None:
        raise InputError("clts", "is empty; expected at least one transcoder.")
    names = ("original", f"{tokens}_mean_0", f"{tokens}_zero_0")
    original, floor_mean, floor_zero = (read.readings[name] for name in names)
    return Fidelity(
        frame=pd.DataFrame(rows),
        original=original,
        floor_mean=floor_mean,
        floor_zero=floor_zero,
        tokens=tokens,
        templates=zs.name,
        data=data.name,
        seed=seed,
        draws=draws,
    )


def _size(config: CLTConfig, fit: Reconstruction, tokens: TokenKind) -> dict[str, Any]:
    of_rows = fit.frame[fit.frame["tokens"] == tokens].sort_values("layer")
    l0, k = of_rows["l0"].tolist(), config.sparsifier.expected_l0
    read = [sum(l0[s] for s in config.sources(l)) for l in range(config.n_layers)]
    return {
        "cross_layer": config.cross_layer,
        "sparsifier": config.sparsifier.name,
        "k": float("nan" if k is None else k),
        "n_features": config.n_features,
        "parameters": config.n_parameters(),
        "l0": sum(l0) / len(l0),
        "codes_read": sum(read) / len(read),
        "codes_read_last": read[-1],
        "dead": fit.mean("all", "dead"),
        "r2_cls": fit.mean("cls"),
        "r2_patch": fit.mean("patch"),
        "r2_position_cls": fit.mean("cls", "r2_position"),
        "r2_position_patch": fit.mean("patch", "r2_position"),
    }


def _readings(read: Cascade, tokens: TokenKind) -> dict[str, Any]:
    name, floor = f"{tokens}_stream_0", f"{tokens}_mean_0"
    readings = read.readings
    found: dict[str, Any] = {"l0_stream": read.l0[name]}
    references = {
        "baseline": readings["original"],
        "floor_mean": readings[floor],
        "floor_zero": readings[f"{tokens}_zero_0"],
    }
    for measure in MEASURES:
        found |= getattr(readings[name], measure).columns(measure)
        found |= {f"{measure}_{end}": getattr(each, measure) for end, each in references.items()}
        share = readings.recovered(name, "original", floor, measure)
        found |= share.columns(f"recovered_{measure}")
    return {**found, "n": readings.n}
