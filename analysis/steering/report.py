"""The page of a steering study."""

from __future__ import annotations

from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.steering.curve_result import SteeringCurve
from vit_clt.analysis.steering.search_result import SteeringSearch

READING = (
    "The CLT stands in for every MLP with its reconstruction error added back, so that the "
    "unsteered model is the model itself and each number is what the edit alone does, everything "
    "downstream live. Large strengths break the model, and random features break it too. What is "
    "specific to a feature is what it does beyond them: its number minus the mean of the random "
    "features beside it, paired over images (which features were drawn is held)."
)


def steering_report(
    study: SteeringCurve | SteeringSearch, title: str, facts: dict[str, str]
) -> str:
    """The page as self-contained HTML; `facts` are those that this kind of study adds."""
    facts = {
        **study.subject.facts(),
        "Images": f"{study.data}, N = {study.n}",
        **facts,
        "Seed": str(study.seed),
    }
    sections = [
        Section("How to read it", [READING, *study.notes()], facts=facts),
        Section("Figure", figures=[study.figure()]),
        Section("Numbers", tables=[study.shown()]),
    ]
    return render_report(title, "Features of a CLT, turned up and down in the model.", sections)
