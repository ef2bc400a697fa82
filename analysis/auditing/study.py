"""The audit: can a CLT's attribution be believed? It runs all diagnostics and gives a verdict.

A CLT may be right about a model's outputs and wrong about its mechanism. Each diagnostic asks one
question, says what a bad answer looks like, and states the answer. The verdict follows the rule in
`vit_clt.analysis.auditing.evidence`; what each score claims has a test of its own beside it
(`vit_clt.analysis.auditing.claims`). Nothing is trained here: the caller gives the rivals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import pandas as pd

from vit_clt.analysis.auditing import diagnostics
from vit_clt.analysis.auditing.claims import claims
from vit_clt.analysis.auditing.claims_result import Claims
from vit_clt.analysis.auditing.controls import ShuffledSources
from vit_clt.analysis.auditing.diagnostics import Diagnostic
from vit_clt.analysis.auditing.evidence import (
    Evidence,
    Verdict,
    account,
    check_question,
    gather_evidence,
)
from vit_clt.analysis.auditing.feature_check import check_features
from vit_clt.analysis.auditing.ridge import ridge_transcoder
from vit_clt.analysis.auditing.rivals import Rivals
from vit_clt.analysis.auditing.surrogate_check import THIS_CLT, check_surrogate
from vit_clt.analysis.causal.study import causal_effects
from vit_clt.analysis.contributions.scores import ContributionScores, contribution_scores
from vit_clt.analysis.fit.fidelity_study import fidelity
from vit_clt.analysis.fit.reconstruction_study import reconstruction
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Audit(Study):
    """The verdict on a CLT's attribution, the evidence for it, and all diagnostics."""

    name = "audit"

    evidence: Evidence
    claims: Claims
    """What C and E each claim, with tests of their own; `verdict` does not read them."""
    diagnostics: list[Diagnostic]
    left_out: dict[str, str]
    """Why a diagnostic was not made, by its code."""
    tokens: TokenKind
    target: int
    data: str
    split: str | None
    n: int
    l0: float
    """Active features a token row and layer, on these rows."""
    readout: str
    fitted_on: str | None
    """Name of the images that the ridge rival was fitted on; None without that rival."""
    rivals: Mapping[str, Any]
    """Facts on the transcoders that the CLT was compared with (`Rivals.facts`)."""
    seed: int

    @property
    def verdict(self) -> Verdict:
        """The verdict: "supported", "mixed" or "unsupported"."""
        return self.evidence.verdict

    @property
    def summary(self) -> str:
        """The verdict, and which of its conditions held and which failed."""
        return f"verdict: {self.verdict} ({account(self.evidence.conditions)})"

    def facts(self) -> Facts:
        """What the CLT was audited on, the verdict, and the rivals."""
        return Facts(
            self.data,
            self.n,
            self.tokens,
            "teacher; stream for D1's accuracies and D12",
            self.l0,
            split=self.split,
            fill="zero, mean, resample",
            seed=self.seed,
            more={
                "clt": self.claims.clt,
                "weights_sha256": self.claims.weights_sha256,
                "n_images": self.n,
                "readout": self.readout,
                "target": self.target,
                "verdict": self.verdict,
                "claims": self.claims.verdicts,
                "left_out": self.left_out,
                "fitted_on": self.fitted_on,
                **self.rivals,
            },
        )

    def caption(self) -> str:
        """The images, rows and layer of the audit."""
        return f"{self.data}, N = {self.n}, {self.tokens} rows of layer {self.target}"

    def to_frame(self) -> pd.DataFrame:
        """One row per number of `metrics`."""
        return pd.DataFrame(map(asdict, self.metrics()))

    def shown(self) -> pd.DataFrame:
        """One row per condition of the verdict."""
        return pd.DataFrame(
            {"condition": c.name, "holds": "yes" if c.holds else "no", "measured": c.reason}
            for c in self.evidence.conditions
        )

    def notes(self) -> list[str]:
        """The verdicts on what each score claims, and what held and what failed."""
        return [*self.claims.verdicts, *self.claims.accounts]

    def metrics(self) -> list[Metric]:
        """Conditions as 0 or 1, the numbers of every diagnostic, and those of the claims."""
        conditions = [
            Metric(f"condition_{c.name.replace(' ', '_')}", int(c.holds), "count", self.n)
            for c in self.evidence.conditions
        ]
        of_diagnostics = [metric for d in self.diagnostics for metric in d.metrics]
        return [*conditions, *of_diagnostics, *self.claims.metrics()]

    def figure(self) -> go.Figure:
        """The figure of D4: the keep-set of the sources with the highest C among all of its size.

        The page has the figures of all diagnostics.
        """
        return self.evidence.sets["zero"].figure()

    def page(self) -> str:
        """One HTML page: the verdict first, then the claims, then every diagnostic."""
        from vit_clt.analysis.reporting.page import Section, render_report

        facts = {
            f"{'yes' if c.holds else 'no'}: {c.name}": c.reason for c in self.evidence.conditions
        }
        sections = [
            Section(
                "Verdict",
                [
                    f"The ranking of source layers by C, {self.tokens} rows, passes "
                    f"{sum(c.holds for c in self.evidence.conditions)} of 3 checks "
                    f"({account(self.evidence.conditions)}): "
                    f'{self.verdict}. ("supported" if all hold, "unsupported" if none does, else '
                    f'"mixed"; the first is over all targets, the others are of layer '
                    f"{self.target}.)",
                    "Whatever the verdict: C says from which depth y_l can be sparsely read, not "
                    "what MLP_s contributed (see D10), and it says little where D3 finds nothing "
                    "to explain.",
                ],
                facts=facts,
            ),
            Section(
                "What each score claims",
                [
                    f"{'; '.join(self.claims.verdicts)}.",
                    *(f"{each[0].upper()}{each[1:]}." for each in self.claims.accounts),
                    "C reads: y_l can be rebuilt from depth s to the extent C(s→l). E acts: "
                    "silencing the features of s does to y_l what ablating MLP_s does in the ViT. "
                    "Each is supported if all of its parts hold. Scores are of one random half of "
                    "the images, what they are compared with is measured on the other.",
                ],
                [self.claims.shown()],
                [self.claims.figure()],
            ),
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
            f"readout: {self.readout}, seed {self.seed}. Intervals: 95 % bootstrap over images."
        )
        title = f"Audit of C(s→l), {self.tokens} rows of layer {self.target}: {self.verdict}"
        return render_report(title, lead, sections)


def audit(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    fit: ImageData | None = None,
    rivals: Rivals | None = None,
    tokens: TokenKind = "cls",
    target: int = -1,
    k: int = 4,
    seed: int = 0,
    progress: bool = False,
) -> Audit:
    """Run every diagnostic that the arguments allow, and give the verdict.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images that neither was trained on.
        classifier: the readout.
        fit: other images, for the ridge rivals; D6 is left out without them.
        rivals: transcoders for D1, D8, D11 and D12; what is missing is left out.
        tokens: kind of rows scored, and overwritten at the target.
        target: the layer whose reconstruction is taken apart; -1 is the last.
        k: number of sources of a keep-set.
        seed: seed of all draws.
        progress: show progress bars.

    Raises:
        InputError: labels have no names, a transcoder belongs to another model, k is out of range,
            or the rows cannot reach the output.
    """
    data = as_image_data(data)
    check_question(vit, data, tokens, target, k)
    if not clt.config.cross_layer:
        raise InputError("clt", "is a per-layer transcoder; expected one that reads across layers.")
    rivals = rivals or Rivals()
    # Accuracy and loss are read with one fill; the other serves the ranking of layers alone.
    effects = [
        causal_effects(
            vit, data, classifier, tokens=tokens, fill="mean", seed=seed, progress=progress
        ),
        causal_effects(vit, data, tokens=tokens, fill="resample", seed=seed, progress=progress),
    ]

    def measure_evidence(transcoder: CrossLayerTranscoder) -> Evidence:
        return gather_evidence(
            vit,
            transcoder,
            data,
            classifier,
            effects,
            k=k,
            target=target,
            seed=seed,
            progress=progress,
        )

    def measure_scores(model: HookedViT, transcoder: CrossLayerTranscoder) -> ContributionScores:
        return contribution_scores(
            model, transcoder, data, tokens=tokens, kind="projection", seed=seed, progress=progress
        )

    evidence = measure_evidence(clt)
    scores = evidence.scores["projection"]
    layer = evidence.sets["zero"].target
    made, left_out = [], {}
    # an iterable of rivals may be gone through only once
    per_layer = iter(rivals.per_layer)
    first_per_layer = list(islice(per_layer, 1))
    if first_per_layer:
        clts = chain([(THIS_CLT, clt)], first_per_layer, per_layer)
        compared = fidelity(vit, clts, data, classifier, seed=seed, progress=progress)
        made.append(diagnostics.per_layer_rivals(compared, THIS_CLT, rivals.trained_on))
    else:
        left_out["D1"] = "no per-layer transcoder was given"
    made += [
        diagnostics.causes(evidence, (effects[0].figure(),)),
        diagnostics.floors(evidence),
        diagnostics.keep_set_rank(evidence),
        diagnostics.fills(evidence),
    ]
    if fit is not None:
        linear = ridge_transcoder(vit, fit, tokens=tokens, progress=progress)
        made.append(diagnostics.ridge(evidence, linear, measure_scores(vit, linear.clt), layer))
    else:
        left_out["D6"] = "no images to fit on were given"
    profile = reconstruction(vit, clt, data, seed=seed, progress=progress)
    made.append(diagnostics.depth_profile(profile, tokens, (profile.figure(),)))
    by_clt, shapes = {THIS_CLT: scores}, {THIS_CLT: _shape(clt)}
    for name, variant in rivals.variants:
        by_clt[name], shapes[name] = measure_scores(vit, variant), _shape(variant)
    if len(by_clt) > 1:
        made.append(diagnostics.variants(by_clt, shapes, rivals.trained_on))
    else:
        left_out["D8"] = "no other CLT of this ViT was given"
    made.append(diagnostics.shortcut())
    random = {
        name: measure_scores(model, transcoder) for name, model, transcoder in rivals.untrained
    }
    shuffled = measure_evidence(ShuffledSources.of(clt))
    made.append(diagnostics.controls(evidence, shuffled, random, rivals.trained_on))
    if not random:
        left_out["D11, in part"] = "no CLT of a ViT with shuffled weights was given"
    surrogates = [*first_per_layer, *((name, each) for name, _, each in rivals.untrained)]
    if fit is not None:
        maps = ridge_transcoder(vit, fit, cross_layer=False, progress=progress)
        surrogates.append(("linear maps", maps.clt))
    made.append(
        check_surrogate(vit, clt, data, classifier, surrogates, seed=seed, progress=progress)
    )
    variants = dict(rivals.variants)
    made.append(check_features(vit, clt, data, fit, variants, seed=seed, progress=progress))
    return Audit(
        evidence=evidence,
        claims=claims(
            vit,
            clt,
            data,
            classifier,
            tokens=tokens,
            k=k,
            target=target,
            seed=seed,
            progress=progress,
        ),
        diagnostics=made,
        left_out=left_out,
        tokens=tokens,
        target=layer,
        data=data.name,
        split=data.split,
        n=len(data),
        l0=scores.l0,
        readout=classifier.name,
        fitted_on=None if fit is None else fit.name,
        rivals=rivals.facts(),
        seed=seed,
    )


def _shape(clt: CrossLayerTranscoder) -> str:
    config = clt.config
    start = ", zero off-diagonal start" if config.zero_cross_init else ""
    skip = ", skip connection" if config.skip else ""
    return f"{config.sparsifier.name}, {config.n_features} features a layer{skip}{start}"


def _rounded(diagnostic: Diagnostic) -> pd.DataFrame:
    table = diagnostic.table.copy()
    for column in table.select_dtypes("number"):
        if table[column].dtype.kind == "f":
            table[column] = [f"{value:.4g}" for value in table[column]]
    return table
