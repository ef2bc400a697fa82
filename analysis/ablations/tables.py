"""Tables made for reading: a row for each kept set, above the rows of the references."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from vit_clt.analysis.stats.readings import Measure, Readings

if TYPE_CHECKING:
    from vit_clt.analysis.ablations.ablation import Ablation
    from vit_clt.analysis.ablations.all_sets_result import KeepSets
    from vit_clt.analysis.ablations.curves import AblationCurves

REFERENCE_ROWS = ("original", "full", "bias_only", "floor_mean", "floor_zero")


class _Column(NamedTuple):
    name: str
    measure: Measure
    decimals: int
    factor: int

    def text(self, value: float) -> str:
        return f"{value * self.factor:.{self.decimals}f}"


_TOP1 = _Column("top-1 %", "top1", 2, 100)
_LOSS = _Column("loss (nats)", "loss", 4, 1)
_ANY_HIT = _Column("any hit %", "any_hit", 2, 100)


def ablation_table(ablation: Ablation) -> pd.DataFrame:
    """A row for the kept set, above one per reference."""
    share = ablation.recovered(measure="loss")
    row = {
        "": "kept",
        **{
            column.name: column.text(getattr(ablation, column.measure)) for column in (_TOP1, _LOSS)
        },
        "loss recovered %": "-" if share != share else f"{100 * share:.1f}",
        "sources": ablation.sources,
    }
    return _above_references([row], ablation.readings, [_TOP1, _LOSS])


def curve_table(curves: AblationCurves) -> pd.DataFrame:
    """One row per ranking, mode and k; random orders have one row, the mean over their draws.

    Where there are several targets, only the sources of the deepest one are listed.
    """
    columns = [_TOP1, _LOSS]
    if "any_hit" in curves.readings.means:
        columns.append(_ANY_HIT)
    frame = curves.to_frame()
    deepest = curves.targets[-1]
    frame["listed"] = [" ".join(map(str, point.sources_at[deepest])) for point in curves.points]
    alone = frame["ranking"].nunique() == 1
    rows = []
    for (ranking, mode, k), draws in frame.groupby(["ranking", "mode", "k"], sort=False):
        share = draws["recovered_loss"].mean()
        rows.append(
            {
                "": f"{mode} {k}" if alone else f"{ranking} {mode} {k}",
                **{column.name: column.text(draws[column.measure].mean()) for column in columns},
                "loss recovered %": "-" if share != share else f"{100 * share:.1f}",
                "sources": draws["listed"].iloc[0] if len(draws) == 1 else f"{len(draws)} draws",
            }
        )
    return _above_references(rows, curves.readings, columns)


def keep_set_table(result: KeepSets) -> pd.DataFrame:
    """One row per marked set, with its readings and how many sets are better."""
    rows = [
        {
            "": mark.set,
            _TOP1.name: _TOP1.text(mark.top1),
            _LOSS.name: _LOSS.text(mark.loss),
            "loss above chosen": f"{mark.loss_above_chosen:.4f} "
            f"[{mark.loss_above_chosen_low:.4f}, {mark.loss_above_chosen_high:.4f}]",
            "rank by loss": f"{mark.rank_loss:,}",
            "sets better %": f"{100 * mark.better_loss:.1f}",
            "rank by top-1": f"{mark.rank_top1:,}",
            "sources": mark.sources,
        }
        for mark in result.marks().itertuples()
    ]
    return _above_references(rows, result.readings, [_TOP1, _LOSS])


def _above_references(
    rows: list[dict[str, str]], readings: Readings, columns: list[_Column]
) -> pd.DataFrame:
    """The table of `rows` and then of the references; cells without a value are "-"."""
    from vit_clt.analysis.reporting.levels import LEVELS

    for name in REFERENCE_ROWS:
        cells = {c.name: c.text(getattr(readings[name], c.measure)) for c in columns}
        rows.append({"": LEVELS[name].label, **cells})
    return pd.DataFrame(rows).fillna("-").replace("", "-")
