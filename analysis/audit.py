"""The audit: can a CLT's attribution be believed? Every diagnostic beside it, and a verdict.

A CLT may be right about a model's outputs and wrong about its mechanism; each diagnostic asks one
question of it, says what a bad answer looks like, and what it was. The verdict follows the rule in
`vit_clt.analysis.evidence`. Nothing is trained here: rivals, variants and controls are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pandas as pd

from vit_clt.analysis import diagnostics
from vit_clt.analysis.causal import causal_effects
from vit_clt.analysis.contributions import ContributionScores, contribution_scores
from vit_clt.analysis.diagnostics import Diagnostic
from vit_clt.analysis.evidence import Evidence, Verdict, check_question, gather_evidence
from vit_clt.analysis.fidelity import fidelity
from vit_clt.analysis.reconstruction import reconstruction
from vit_clt.analysis.reconstruction_figure import reconstruction_figure
from vit_clt.analysis.report import Section, render_report
from vit_clt.analysis.ridge import ridge_transcoder
from vit_clt.analysis.rivals import Rivals
from vit_clt.analysis.shuffled import ShuffledSources
from vit_clt.analysis.term_sets import Fill
from vit_clt.data import ImageData, as_image_data
from vit_clt.hooks import HookedViT, TokenKind
from vit_clt.metrics import Metric
from vit_clt.transcoder import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot


@dataclass(frozen=True)
class Audit:
    """The verdict, what it rests on, and every diagnostic."""

    evidence: Evidence
    diagnostics: list[Diagnostic]
    left_out: dict[str, str]
    """Diagnostics that were not made, and why."""
    tokens: TokenKind
    target: int
    data: str
    n: int
    l0: float
    """Active features a token and layer, on these rows."""
    templates: str
    seed: int

    @property
    def verdict(self) -> Verdict:
        """ "supported", "mixed" or "unsupported"."""
        return self.evidence.verdict

    def metrics(self) -> list[Metric]:
        """Conditions as 0 or 1, then the numbers of every diagnostic."""
        held = [
            Metric(f"condition_{c.name.replace(' ', '_')}", int(c.holds), "count", self.n)
            for c in self.evidence.conditions
        ]
        return [*held, *(metric for d in self.diagnostics for metric in d.metrics)]

    def report(self) -> str:
        """One HTML page: the verdict first, then a section for each diagnostic."""
        facts = {
            f"{'yes' if c.holds else 'no'}: {c.name}": c.reason for c in self.evidence.conditions
        }
        sections = [
            Section(
                "Verdict",
                [
                    f"C(s→l) of layer {self.target}, {self.tokens} rows, is {self.verdict} as an "
                    'account of what the model does. Rule: "supported" if all three conditions '
                    'hold, "unsupported" if none does, else "mixed".',
                    "Whatever the verdict: C says from which depth y_l can be sparsely read, not "
                    "what MLP_s contributed (see D10).",
                ],
                facts=facts,
            )
        ]
        for d in self.diagnostics:
            sections.append(
                Section(
                    f"{d.code} {d.question}",
                    tables=[] if d.table.empty else [_rounded(d)],
                    figures=d.figures,
                    facts={"Measured": d.measured, "A bad answer": d.bad, "Found": d.found},
                )
            )
        if self.left_out:
            sections.append(Section("Not made", facts=self.left_out))
        lead = (
            f"{self.data}, N = {self.n}, teacher trajectory, L0 = {self.l0:.1f} a token and layer, "
            f"templates: {self.templates}, seed {self.seed}. Intervals: 95 % bootstrap over images."
        )
        title = f"Audit of C(s→l), {self.tokens} rows of layer {self.target}: {self.verdict}"
        return render_report(title, lead, sections)


def audit(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    *,
    fit: ImageData | None = None,
    rivals: Rivals | None = None,
    tokens: TokenKind = "cls",
    target: int = -1,
    k: int = 4,
    seed: int = 0,
    progress: bool = False,
) -> Audit:
    """Run every diagnostic there is material for, and judge.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images that neither was trained on.
        zs: the zero-shot classifier.
        fit: other images, for the ridge rival (D6).
        rivals: transcoders trained for D1, D8 and D11.
        tokens: rows scored, and overwritten at the target.
        target: the layer whose reconstruction is taken apart; -1 is the last.
        k: sources a keep-set holds.
        seed: of everything random.
        progress: show progress bars.

    Raises:
        InputError: labels without names, a transcoder of another model, k out of range, or rows
            that cannot reach the output.
    """
    data = as_image_data(data)
    check_question(vit, tokens, target, k)
    rivals = rivals or Rivals()
    effects = [
        causal_effects(vit, data, zs, tokens=tokens, fill=fill, seed=seed, progress=progress)
        for fill in get_args(Fill)
        if fill != "zero"
    ]

    def evidence_of(each: CrossLayerTranscoder) -> Evidence:
        return gather_evidence(
            vit, each, data, zs, effects, k=k, target=target, seed=seed, progress=progress
        )

    def scores_of(model: HookedViT, each: CrossLayerTranscoder) -> ContributionScores:
        return contribution_scores(
            model, each, data, tokens=tokens, kind="projection", seed=seed, progress=progress
        )

    evidence = evidence_of(clt)
    own = evidence.scores["projection"]
    made, left_out = [], {}
    if rivals.per_layer:
        clts = {"this CLT": clt, **rivals.per_layer}
        found = fidelity(vit, clts.items(), data, zs, seed=seed, progress=progress)
        made.append(diagnostics.per_layer_rivals(found))
    else:
        left_out["D1"] = "no per-layer transcoder was given"
    made += [
        diagnostics.causes(evidence, (effects[0].figure(),)),
        diagnostics.floors(evidence),
        diagnostics.keep_set_rank(evidence),
        diagnostics.fills(evidence),
    ]
    if fit is not None:
        linear = ridge_transcoder(vit, fit, progress=progress)
        made.append(diagnostics.ridge(evidence, linear, scores_of(vit, linear.clt)))
    else:
        left_out["D6"] = "no images to fit on were given"
    profile = reconstruction(vit, clt, data, progress=progress)
    made.append(diagnostics.depth_profile(profile, tokens, (reconstruction_figure([profile]),)))
    if rivals.variants:
        others = {name: scores_of(vit, each) for name, each in rivals.variants.items()}
        made.append(diagnostics.variants(own, others))
    else:
        left_out["D8"] = "no other CLT of this ViT was given"
    made.append(diagnostics.shortcut())
    random = {name: scores_of(*each) for name, each in rivals.untrained.items()}
    made.append(diagnostics.controls(evidence, evidence_of(ShuffledSources.of(clt)), random))
    if not random:
        left_out["D11, in part"] = "no CLT of a ViT with random weights was given"
    return Audit(
        evidence=evidence,
        diagnostics=made,
        left_out=left_out,
        tokens=tokens,
        target=evidence.sets["zero"].target,
        data=data.name,
        n=len(data),
        l0=own.l0,
        templates=zs.name,
        seed=seed,
    )


def _rounded(diagnostic: Diagnostic) -> pd.DataFrame:
    table = diagnostic.table.copy()
    for column in table.select_dtypes("number"):
        if table[column].dtype.kind == "f":
            table[column] = [f"{value:.4g}" for value in table[column]]
    return table
