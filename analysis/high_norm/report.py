"""The page of high-norm rows: what marks them, numbers by layer, where they lie, and features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_clt.analysis.high_norm.figure import high_norm_figure, map_figure, marked_figure
from vit_clt.analysis.reporting.facts_text import facts_text
from vit_clt.analysis.reporting.page import Section, render_report

if TYPE_CHECKING:
    from vit_clt.analysis.high_norm.result import HighNorm

_LEAD = "Which patch rows have outlying norms at each layer, and what do they do to a CLT?"


def high_norm_page(result: HighNorm) -> str:
    """The page as self-contained HTML."""
    found = int(result.by_layer("high_norm", "rows").sum())
    where = (
        f"High-norm at a layer are the patch rows with a {result.rule.text()}, both over all patch "
        "rows of all images there. CLS rows and registers are kinds of their own and never counted."
    )
    none = "No patch row is high-norm at any layer by this rule: what is measured on them is empty."
    sections = [
        Section(
            "By layer", [where, *([] if found else [none])], figures=[high_norm_figure(result)]
        ),
        Section("Table", result.notes(), [result.shown()]),
        Section("Where they lie", figures=[map_figure(result)]),
    ]
    if result.marked:
        sections.append(Section("Images", figures=[marked_figure(result)]))
    sections += [
        Section(heading, tables=[table]) for heading, table in result.further_tables().items()
    ]
    sections += [
        Section("Kinds of rows", tables=[result.kinds_shown()]),
        Section("Measured on", facts=facts_text({"n": result.n, **result.facts().context()})),
    ]
    return render_report("High-norm rows", _LEAD, sections)
