"""The page of `vit-clt graph`: direct effects, a graph per image, their check by intervention."""

from __future__ import annotations

from vit_clt.analysis.graphs.agreement_figure import agreement_figure
from vit_clt.analysis.graphs.graph_figure import graph_figure
from vit_clt.analysis.graphs.result import GraphStudy
from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.reporting.tables import rounded
from vit_clt.choices import Norms

_LEADS: dict[Norms, str] = {
    "held": "A class logit, taken apart with the attention patterns, all LayerNorm scales, the "
    "embedding's norm and the set of active features held at what they were. Under that condition "
    "the sums are exact, error nodes and biases included.",
    "differentiated": "What a small change would do to a class logit, with the attention patterns "
    "and the set of active features held and all norms differentiated. These effects do not sum "
    "to the logit.",
}
_CAUTION = (
    " How far it carries is measured at the end. Features of layer s read everything up to there: "
    "effects say from where the logit can be read, not what MLP s contributed."
)
_CHECK = (
    "One feature of one token row is set to 0 in the CLT that stands in for all MLPs, error nodes "
    "added, and the logit is read, its embedding normalised anew. The floor is what 97.5 % of "
    "permuted predictions stay below. A slope below 1 says that predictions are too large: a norm "
    "that is held counts in full what it would have scaled away. Predictions with norms "
    "differentiated show how much of a disagreement that is; they do not sum to the logit."
)


def graph_report(study: GraphStudy) -> str:
    """The page of a study of graphs, as self-contained HTML."""
    subject = study.subject.facts()
    facts = {
        "Model": subject["Model"],
        "CLT": f"{subject['CLT']}, L0 {study.l0:.1f} on all rows of these images",
        "Images": f"{study.data}, N = {len(study.query)}, teacher trajectory",
        "Floor": "mean logit of the other classes"
        + (" minus the contrast's" if study.contrasted else ""),
        "Readout": study.readout,
        "Seed": f"{study.agreement.seed} (interventions, intervals)",
    }
    sections = [
        Section(
            "Direct effects",
            [_agreement(study)],
            tables=[rounded(study.summary().loc[:, :"bias"])],
            figures=[study.figure()],
            facts=facts,
        )
    ]
    for i, (graph, title) in enumerate(zip(study.graphs, study.titles, strict=True)):
        sections.append(
            Section(
                title,
                graph.notes(),
                tables=[graph.shown(), *graph.further_tables().values()],
                figures=[graph_figure(graph, study.pictures[i], study.effects.patches[i])],
            )
        )
    sections.append(
        Section(
            "Are these effects what interventions find?",
            [_CHECK],
            tables=[study.agreement.shown()],
            figures=[agreement_figure(study)],
        )
    )
    return render_report("Attribution graphs", _LEADS[study.norms] + _CAUTION, sections)


def _agreement(study: GraphStudy) -> str:
    """A sentence on how well the effects predict interventions, for the top of the page."""
    r, reason = study.agreement.live(study.norms), study.norms_reason
    return (
        f"Direct effects, norms {study.norms}, against live interventions (one feature silenced, "
        f"everything recomputed): Pearson's r {r['pearson']:.2f} [{r['pearson_low']:.2f}, "
        f"{r['pearson_high']:.2f}], floor {r['pearson_floor_high']:.2f}, slope {r['slope']:.2f}, "
        f"N = {int(r['n'])}." + (f" {reason[0].upper()}{reason[1:]}." if reason else "")
    )
