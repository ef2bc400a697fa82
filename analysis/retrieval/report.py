"""The page of a retrieval study: what every layer retrieves, and how often it has the class."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.retrieval.consistency import ClassConsistency
from vit_clt.analysis.retrieval.figures import consistency_figure

SECTION = "Which images look alike to each layer?"
MEANING = (
    "Two images are near at layer s where the same features are active: in the sparse code z_s of "
    "the class token (CLS), or in its average over patch rows. z_s reads the whole stream up to "
    "depth s, so a layer at which images of one class lie together is one at which their class can "
    "be read from the codes, not the one that worked it out. Chance is the share of the corpus "
    "with the query's label. The baseline compares the plain x_s, which the codes are made from, "
    "in the same way: where it lies above the codes, they have lost something. Where it lies "
    "below, sparseness and pooling alone may have brought it out: an untrained transcoder of the "
    "same shape tells."
)


def retrieval_section(result: ClassConsistency, grids: Sequence[go.Figure]) -> Section:
    """Consistency and grids under one heading, for a report that shows more than this."""
    return Section(
        SECTION,
        [MEANING],
        figures=[consistency_figure(result), *grids],
    )


def retrieval_report(
    result: ClassConsistency, grids: Sequence[go.Figure], facts: dict[str, str]
) -> str:
    """The whole page as a string."""
    lead = (
        "For each layer of a vision transformer, the images of a corpus whose sparse transcoder "
        "codes are nearest to those of a query image."
    )
    sections = [
        Section("What was done", facts=facts),
        Section("How to read it", [MEANING]),
        Section("Class consistency per layer", figures=[consistency_figure(result)]),
        Section("Nearest images", figures=grids),
    ]
    return render_report("Layerwise retrieval", lead, sections)
