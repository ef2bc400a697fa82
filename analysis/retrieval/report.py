"""The page of a retrieval study: what every layer retrieves, and how often the class is right."""

from __future__ import annotations

from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.retrieval.consistency import ClassConsistency
from vit_clt.analysis.retrieval.consistency_figure import consistency_figure

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


def retrieval_section(result: ClassConsistency) -> Section:
    """Consistency and examples in one section, for a page that shows more than retrieval."""
    examples = [retrieved.figure(size=38) for retrieved in result.examples]
    return Section(SECTION, [MEANING], figures=[consistency_figure(result), *examples])


def retrieval_report(result: ClassConsistency) -> str:
    """The page as self-contained HTML; each query of the examples has a figure of its own."""
    lead = (
        "For each layer of a vision transformer, the images of a corpus whose sparse transcoder "
        "codes are nearest to those of a query image."
    )
    facts = {
        **result.subject.facts(),
        "Queries": f"{result.data}, N = {result.n}; {result.own_rows_text()}",
        "Corpus": f"{result.corpus}, N = {result.n_corpus}",
        "Search": f"{result.similarity} similarity, {result.backend}, top {result.k}; codes "
        "on the teacher trajectory",
        "Seed": f"{result.seed} (bootstrap over queries)",
    }
    grids = [
        retrieved.take(i).figure()
        for retrieved in result.examples
        for i in range(len(retrieved.query))
    ]
    sections = [
        Section("What was done", facts=facts),
        Section("How to read it", [MEANING]),
        Section("Class consistency per layer", figures=[consistency_figure(result)]),
        Section("Nearest images", figures=grids),
    ]
    return render_report("Layerwise retrieval", lead, sections)
