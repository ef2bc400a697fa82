"""The page of `vit-clt heads`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_clt.analysis.heads.figure import heads_figure
from vit_clt.analysis.heads.reading_figure import reading_figure
from vit_clt.analysis.reporting.facts_text import facts_text
from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.reporting.tables import rounded

if TYPE_CHECKING:
    from vit_clt.analysis.heads.result import HeadStudy

_LEAD = (
    "The label's logit, less the mean of all classes, taken apart by attention head and MLP with "
    "attention patterns and norms held: what the output of each adds through the residual stream "
    "alone. Patterns are held, so that nothing here says why a head looks where it looks; and a "
    "head may matter through later layers without a direct term. Ablation of single heads, with "
    "everything recomputed, is the check."
)
_AGREEMENT = (
    "Spearman's ρ over heads between what the direct terms predict of the mean change of the logit "
    "and what ablating each head changes; intervals draw images. Foretold: the interval lies above "
    "what 97.5 % of permuted predictions stay below. A mean fill keeps what a head writes on every "
    "image alike, so that its term is taken off the prediction."
)
_CARRIED = (
    "What a head carries is the part of a source's effect whose last attention step is this head; "
    "features, errors, patches and biases sum to the head's term. The strongest heads and their "
    "features are those of largest absolute mean beyond the floor, which is the same for another "
    "label: what is written on every image alike counts in both."
)
_ROWS = (
    "On each image the two key rows of largest absolute term, their share of the sum of absolute "
    "terms, and the three features that the head carries most of from there, if any. A feature's "
    "row is the one it is active on: lower attention may have brought it to the row that is read."
)


def heads_report(study: HeadStudy) -> str:
    """The page of a study of heads, as self-contained HTML."""
    facts = facts_text({"n": study.facts().n, **study.facts().context()})
    sections = [
        Section("Heads beside MLPs", study.notes(), figures=[heads_figure(study)]),
        Section(
            "Do direct terms foretell ablations?", [_AGREEMENT], tables=[study.agreement_table()]
        ),
        Section(
            "What the strongest heads carry",
            [_CARRIED],
            tables=[study.parts_table(), study.features_table()],
        ),
        Section(
            "Which rows they read",
            [_ROWS],
            tables=[study.rows_table()],
            figures=[reading_figure(study)],
        ),
        Section("Every head", tables=[study.shown()]),
        Section("Layers", tables=[rounded(study.by_layer())]),
        Section("Measured on", facts=facts),
    ]
    return render_report("Attention heads beside MLPs", _LEAD, sections)
