"""`vit-clt causal`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vit_clt.choices import CausalSite, Fill, TokenKind
from vit_clt.cli.command import MemoryOptions, SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.optional_clt import OptionalCLT
from vit_clt.cli.options import check_clts
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import (
    causal_work,
    contribution_work,
    fit_work,
    head_work,
    surrogate_work,
)
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.analysis.causal.surrogate_result import SurrogateCausality
    from vit_clt.analysis.stats.names import LayerSet
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.readouts.base import Classifier
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class Causal(ReadoutOptions, OptionalCLT, StudyOptions, MemoryOptions, SeedOptions):
    """What changes in the ViT itself when a layer is ablated; with --clt, does it agree?

    With a CLT, its scores C are compared with the effects (rank agreement), and the ViT with the
    CLT in its MLPs' place undergoes the same ablations (surrogate causality).

    Example: vit-clt causal --model digits --tokens cls --fill mean --out out/causal
    """

    uncommon = ("readout",)
    of_clt = ("any_teacher", "per_layer", "linear", "every_intervention")

    tokens: TokenKind = "cls"
    """Token rows that are scored at the target layers."""
    ablated: TokenKind = "all"
    """Token rows that are overwritten at the ablated layers."""
    site: CausalSite = "mlp"
    """Outputs that are overwritten: those of MLPs (mlp), of attention layers (attn), or of single
    attention heads (head), one at a time and read at the output alone."""
    fill: Fill = "mean"
    """What is written there: zeros (zero), the mean over the images (mean), or the rows of another
    image (resample)."""
    pairs: bool = False
    """Also ablate every pair of layers together."""
    per_layer: tuple[str, ...] = ()
    """Per-layer transcoders of the same teacher, put in the MLPs' place beside the CLT."""
    linear: bool = False
    """Also put each MLP's best linear map in its place, fitted on --train-data."""
    every_intervention: bool = False
    """Compare CLT and ViT at every site, fill and kind of ablated rows, beside those named."""

    def check(self) -> None:
        """Refuse transcoders that are not there, and options of layers beside single heads."""
        for name in ("clt", "pairs") if self.site == "head" else ():
            if getattr(self, name):
                text = "is given with --site head; expected none, as a CLT and sets are of layers."
                raise InputError(name, text)
        if self.site == "head" and self.tokens != "cls":
            raise InputError(
                "tokens",
                f'is "{self.tokens}" with --site head; expected none, as heads are read at the '
                "output.",
            )
        super().check()
        check_clts("per_layer", self.per_layer)

    def work(self, of: Scope) -> Work:
        """Altered passes for every set of layers; with a CLT, its scores and surrogates too."""
        n = of.images
        if self.site == "head":
            return head_work(of, n)
        work = causal_work(of, n, pairs=self.pairs)
        if of.clts:
            surrogates = 1 + len(self.per_layer) + self.linear
            # every site, fill and kind of rows (`every_intervention`)
            interventions = 18 if self.every_intervention else 1
            work += fit_work(of) + contribution_work(of, n, self.kept_bytes)
            work += interventions * surrogate_work(of, n, surrogates, pairs=self.pairs)
        return work

    def run(self) -> None:
        """Ablate, draw, and report."""
        if self.site == "head":
            self._ablate_heads()
            return
        from vit_clt.analysis import causal_effects
        from vit_clt.analysis.causal.agreement import clt_agreement
        from vit_clt.analysis.causal.effects import CausalEffects
        from vit_clt.analysis.causal.surrogate_result import SurrogateCausality
        from vit_clt.analysis.stats.names import layer_sets

        studies = [CausalEffects, SurrogateCausality] if self.clt else [CausalEffects]
        folder = self.folder_of(*studies)
        vit, clt, data = self.load_with_clt(self.device)
        # effects on the output are read as accuracy and loss, which need labels; the others do not
        classifier = self.classifier_if_labelled(vit, data, self.seed, fits=self.linear)
        sets = layer_sets(vit.cfg.n_layers, pairs=self.pairs)
        self.tell(vit, data, [] if clt is None else [clt])
        effects = causal_effects(
            vit,
            data,
            classifier,
            tokens=self.tokens,
            ablated=self.ablated,
            fill=self.fill,
            site=self.site,
            sets=sets if classifier or self.pairs else None,
            seed=self.seed,
            progress=True,
        )
        if clt is None:
            self.report(folder, effects, "causal")
            return
        fits = measured_fits(vit, {str(self.clt): clt}, data)
        study = clt_agreement(
            effects, vit, clt, data, str(self.clt), kept_bytes=self.kept_bytes, progress=True
        )
        if classifier is not None:
            surrogate = self._surrogate(vit, clt, data, classifier, sets)
            study = replace(study, surrogate=surrogate)
        self.report(folder, study, "causal", fits=fits)

    def _ablate_heads(self) -> None:
        from vit_clt.analysis import head_ablations
        from vit_clt.analysis.causal.head_result import HeadAblations

        folder = self.folder_of(HeadAblations)
        vit = self.load_vit(self.device)
        data = self.load_measured(vit)
        classifier = self.classifier(vit, data, self.seed)
        self.tell(vit, data)
        study = head_ablations(
            vit,
            data,
            classifier,
            ablated=self.ablated,
            fill=self.fill,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, study, "causal")

    def _surrogate(
        self,
        vit: HookedViT,
        clt: CrossLayerTranscoder,
        data: ImageData,
        classifier: Classifier,
        sets: list[LayerSet],
    ) -> SurrogateCausality:
        from vit_clt.analysis import surrogate_causality
        from vit_clt.analysis.auditing.ridge import ridge_transcoder
        from vit_clt.analysis.auditing.rivals import given_rivals
        from vit_clt.analysis.causal.interventions import Intervention, every_intervention

        given = {"per_layer": self.per_layer}
        saved = given_rivals(vit, given, self.device, any_teacher=self.any_teacher)
        rivals = [pair for transcoders in saved.values() for pair in transcoders]
        if self.linear:
            train = self.load_train_images(vit, data)
            linear = ridge_transcoder(vit, train, cross_layer=False, progress=True)
            rivals.append((f"linear maps of {train.name} ({len(train)})", linear.clt))
        assert self.site != "head"
        named = Intervention(self.site, self.fill, self.ablated)
        return surrogate_causality(
            vit,
            clt,
            data,
            classifier,
            interventions=[named, *(every_intervention(vit) if self.every_intervention else ())],
            sets=sets,
            rivals=rivals,
            seed=self.seed,
            progress=True,
        )
