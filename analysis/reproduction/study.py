"""The result of the paper's evaluation: our numbers beside the paper's, from the finished cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.tables import csv_table
from vit_clt.analysis.reproduction.cells import Recipe
from vit_clt.analysis.reproduction.comparison import (
    FinishedCell,
    comparison,
    comparison_metrics,
)
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Reproduction(Study):
    """The finished cells of a study, compared with the paper's tables."""

    name = "report"
    endings = ("html",)
    extra_files = ("comparison.csv",)

    finished: Sequence[FinishedCell]
    recipe: Recipe
    """The recipe that the study was started with."""

    @cached_property
    def _comparison(self) -> pd.DataFrame:
        return comparison(self.finished)

    def facts(self) -> Facts:
        """The data sets, the L0 of every cell, the recipe, and how it differs from the paper's."""
        from vit_clt.analysis.reproduction.report import differences_from_paper

        return Facts(
            " ".join(dict.fromkeys(one.cell.dataset for one in self.finished)),
            max((one.facts["n"] for one in self.finished), default=0),
            "cls patch all",
            " ".join(self.recipe.inputs),
            {one.cell.name: one.facts["l0"] for one in self.finished},
            seed=self.recipe.training.seed,
            more={
                "templates": self.recipe.templates,
                "floor": "those MLP rows at their mean over the images",
                "differences_from_paper": differences_from_paper(self.recipe),
                "recipe": self.recipe.to_json(),
            },
        )

    def caption(self) -> str:
        """What was run, and how many cells are finished."""
        from vit_clt.analysis.reproduction.report import LEAD

        return f"{LEAD} Cells finished: {len(self.finished)}."

    def to_frame(self) -> pd.DataFrame:
        """One row per number of ours, with the paper's beside it (`comparison`)."""
        return self._comparison

    def shown(self) -> pd.DataFrame:
        """Accuracy with all layers replaced, one row per cell and token kind."""
        from vit_clt.analysis.reproduction.report import summary

        return summary(self._comparison)

    def metrics(self) -> list[Metric]:
        """The numbers of the comparison, and their differences from the paper's."""
        return comparison_metrics(self._comparison)

    def figure(self) -> go.Figure:
        """Top-1 by first layer replaced, of the first teacher; the page has all teachers'.

        It is empty as long as no cell is finished.
        """
        import plotly.graph_objects as go

        from vit_clt.analysis.reproduction.figures import replacement_comparison
        from vit_clt.analysis.reproduction.report import cells_by_teacher

        groups = cells_by_teacher(self.finished)
        return replacement_comparison(groups[0]) if groups else go.Figure()

    def page(self) -> str:
        """The whole report."""
        from vit_clt.analysis.reproduction.report import study_report

        return study_report(self.finished, self._comparison, self.recipe)

    def extras(self) -> Iterable[tuple[str, str]]:
        """The comparison, under a name that says what it holds."""
        return [("comparison.csv", csv_table(self._comparison))]
