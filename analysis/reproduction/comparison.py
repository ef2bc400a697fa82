"""Finished cells of the paper's evaluation are read from disk and compared with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vit_clt.analysis.reproduction.cells import (
    BASELINE_FILE,
    CELL_FILE,
    Cell,
    cells,
    group_path,
    is_finished,
)
from vit_clt.analysis.reproduction.published import (
    paper_baselines,
    paper_cascade,
    paper_faithfulness,
)
from vit_clt.inputs import read_json, reading
from vit_clt.metrics import Metric

_CELL = ["dataset", "backbone", "sparsifier"]
_RANGE = ["tokens", "first_layer", "last_layer"]
_TABLE_5 = {
    "delta_top1": ("delta_top1_points", 0.01),
    "flip": ("flip_percent", 0.01),
    "top5_overlap": ("top5_overlap_percent", 0.01),
    **{name: (name, 1.0) for name in ("kl", "cosine", "cka", "spearman", "prompt_r", "prompt_kl")},
}
"""For each of our measures the paper's column, and the factor to our unit."""
COLUMNS = [
    "table",
    *_CELL,
    *_RANGE,
    "inputs",
    "templates",
    "measure",
    "unit",
    "value",
    "low",
    "high",
    "n",
    "l0",
    "paper",
    "difference",
    "paper_inside_interval",
    "baseline",
    "floor_mean",
    "floor_zero",
    "loss",
    "loss_low",
    "loss_high",
    "loss_baseline",
    "loss_floor_mean",
    "loss_floor_zero",
    "seed",
    "smoke",
]


@dataclass(frozen=True)
class FinishedCell:
    """The results that a finished cell has on disk."""

    cell: Cell
    facts: dict[str, Any]
    """Contents of cell.json."""
    cascade: pd.DataFrame
    faithfulness: pd.DataFrame
    reconstruction: pd.DataFrame
    baseline: pd.DataFrame
    """Readings of the unaltered teacher, one row per set of templates."""

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the cell, as JSON values."""
        recipe: dict[str, Any] = self.facts["recipe"]
        return recipe


def finished_cells(root: Path | str) -> list[FinishedCell]:
    """Every finished cell below `root`, in the order of the study.

    Raises:
        InputError: a file of a finished cell is missing or broken.
    """
    root = Path(root)
    finished = []
    for cell in cells():
        if not is_finished(root, cell):
            continue
        folder = root / cell.path
        with reading(folder, "the files of a finished cell"):
            finished.append(
                FinishedCell(
                    cell,
                    read_json(folder / CELL_FILE),
                    pd.read_csv(folder / "cascade.csv"),
                    pd.read_csv(folder / "faithfulness.csv"),
                    pd.read_csv(folder / "reconstruction.csv"),
                    pd.read_csv(root / group_path(cell.dataset, cell.backbone) / BASELINE_FILE),
                )
            )
    return finished


def comparison(finished: Sequence[FinishedCell]) -> pd.DataFrame:
    """One row per number of ours, with the paper's beside it (NaN where it has none).

    `value`, `low`, `high`, `paper`, `difference` (ours minus the paper's), `baseline` and floors
    are in `unit`: fractions, or nats. `paper_inside_interval` is empty where the interval or the
    paper's number is missing. Intervals are 95 % bootstrap over images: they do not include the
    spread between trainings.
    """
    if not finished:
        return pd.DataFrame(columns=COLUMNS)
    parts = [_baselines(finished), *(part for cell in finished for part in _cell_rows(cell))]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    frame["difference"] = frame["value"] - frame["paper"]
    inside = (frame["low"] <= frame["paper"]) & (frame["paper"] <= frame["high"])
    known = frame[["low", "high", "paper"]].notna().all(axis=1)
    frame["paper_inside_interval"] = inside.astype(object).where(known, None)
    return frame.reindex(columns=COLUMNS)


def comparison_metrics(frame: pd.DataFrame) -> list[Metric]:
    """Rows of `comparison` as metrics, with `..._minus_paper` where the paper has the number."""
    metrics = []
    for r in frame.itertuples():
        parts = [r.dataset, r.backbone.replace("/", "-"), r.sparsifier, r.tokens, r.inputs]
        if r.first_layer == r.first_layer:
            parts.append(f"{r.first_layer:.0f}_to_{r.last_layer:.0f}")
        parts += [r.measure] if isinstance(r.sparsifier, str) else [r.measure, r.templates]
        name = "_".join(part for part in parts if isinstance(part, str))
        floor, baseline = r.floor_mean, r.baseline
        n = int(r.n)
        metrics.append(Metric(name, r.value, r.unit, n, r.low, r.high, floor, baseline))
        if r.difference == r.difference:
            ends = r.low - r.paper, r.high - r.paper
            metrics.append(Metric(f"{name}_minus_paper", r.difference, r.unit, n, *ends))
    return metrics


def _baselines(finished: Sequence[FinishedCell]) -> pd.DataFrame:
    """Top-1 of the unaltered teachers, a row per data set, backbone and set of templates."""
    teachers = {(done.cell.dataset, done.cell.backbone): done for done in finished}
    paper = paper_baselines().set_index(["dataset", "backbone"])["top1_percent"]
    rows = []
    for (dataset, backbone), done in teachers.items():
        for r in done.baseline.itertuples():
            rows.append(
                {
                    "dataset": dataset,
                    "backbone": backbone,
                    "templates": r.templates,
                    "measure": "baseline_top1",
                    "unit": "fraction",
                    "value": r.top1,
                    "low": r.top1_low,
                    "high": r.top1_high,
                    "n": r.n,
                    "paper": paper.get((dataset, backbone), float("nan")) / 100,
                    "loss": r.loss,
                    "loss_low": r.loss_low,
                    "loss_high": r.loss_high,
                    **_context(done),
                }
            )
    return pd.DataFrame(rows)


def _cell_rows(done: FinishedCell) -> list[pd.DataFrame]:
    """Rows of the cascade and of faithfulness of one cell."""
    cell = {name: getattr(done.cell, name) for name in _CELL}
    shared = {**cell, **_context(done), "templates": done.recipe["templates"]}

    paper = paper_cascade().rename(columns={"top1_percent": "paper"})
    paper["paper"] /= 100
    ours = done.cascade.assign(**shared, measure="top1", unit="fraction")
    ours = ours.rename(columns={"top1": "value", "top1_low": "low", "top1_high": "high"})
    top1 = ours.merge(paper, on=[*_CELL, *_RANGE], how="left")
    # the paper has no numbers for teacher inputs
    top1.loc[top1["inputs"] != "stream", ["paper", "table"]] = float("nan")

    table_5 = paper_faithfulness().drop(columns=["dataset", "backbone"])
    theirs = pd.concat(
        table_5[_RANGE].assign(measure=name, paper=table_5[column] * factor, table=5)
        for name, (column, factor) in _TABLE_5.items()
    )
    # accuracy and loss of these ranges are in the cascade already
    others = done.faithfulness[~done.faithfulness["measure"].isin(["top1", "loss"])]
    faithful = others.assign(**shared).merge(theirs, on=[*_RANGE, "measure"], how="left")
    first = paper_faithfulness().iloc[0]
    if (cell["dataset"], cell["backbone"]) != (first["dataset"], first["backbone"]):
        faithful[["paper", "table"]] = float("nan")
    return [top1, faithful]


def _context(done: FinishedCell) -> dict[str, Any]:
    return {"seed": done.recipe["training"]["seed"], "smoke": done.recipe["smoke"]}
