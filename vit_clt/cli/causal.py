"""`vit-clt causal`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from vit_clt.choices import Fill, Site, TokenKind
from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.options import CLTOptions, ModelOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.errors import InputError

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class Causal(ReadoutOptions, ModelOptions, StudyOptions, SeedOptions):
    """What changes in the ViT itself when a layer is ablated; with --clt, does C agree?

    Example: vit-clt causal --model digits --tokens cls --fill mean --out out/causal
    """

    clt: str | None = None
    """Folder or Hub id of a CLT whose contribution scores are compared with the effects; without it
    the effects are measured alone."""
    any_teacher: bool = False
    """Accept a CLT that was trained on another model."""
    tokens: TokenKind = "cls"
    """Token rows that are scored at the target layers."""
    ablated: TokenKind = "all"
    """Token rows that are overwritten at the ablated layers."""
    site: Site = "mlp"
    """Outputs that are overwritten: those of MLPs (mlp) or of attention layers (attn)."""
    fill: Fill = "mean"
    """What is written there: zeros (zero), the mean over the images (mean), or the rows of another
    image (resample)."""
    pairs: bool = False
    """Also ablate every pair of layers together."""

    def run(self) -> None:
        """Ablate, draw, and report."""
        from vit_clt.analysis import causal_effects
        from vit_clt.analysis.causal.agreement import clt_agreement
        from vit_clt.analysis.causal.effects import CausalEffects
        from vit_clt.analysis.stats.names import layer_sets

        folder = self.folder_of(CausalEffects)
        vit, clt, data = self._load()
        # effects on the output are read as accuracy and loss, which need labels; the others do not
        classifier = self.classifier_if_labelled(vit, data, self.seed)
        effects = causal_effects(
            vit,
            data,
            classifier,
            tokens=self.tokens,
            ablated=self.ablated,
            fill=self.fill,
            site=self.site,
            sets=layer_sets(vit.cfg.n_layers, pairs=self.pairs)
            if classifier or self.pairs
            else None,
            seed=self.seed,
            progress=True,
        )
        if clt is None:
            self.report(folder, effects, "causal")
        else:
            study = clt_agreement(effects, vit, clt, data, str(self.clt), progress=True)
            self.report(folder, study, "causal")

    def _load(self) -> tuple[HookedViT, CrossLayerTranscoder | None, ImageData]:
        if self.clt is not None:
            shared = {field.name: getattr(self, field.name) for field in fields(ModelOptions)}
            options = CLTOptions(**shared, clt=self.clt, any_teacher=self.any_teacher)
            return options.load_all(self.device)
        if self.any_teacher:
            raise InputError("any_teacher", "is given without a CLT; expected --clt beside it.")
        vit = self.load_vit(self.device)
        return vit, None, self.load_images(vit)
