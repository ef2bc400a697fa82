"""`vit-clt causal`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vit_clt.choices import Fill, Site, Templates, TokenKind
from vit_clt.cli.options import (
    CLTOptions,
    ModelOptions,
    SeedOptions,
    StudyOptions,
    print_table,
)
from vit_clt.errors import InputError


@dataclass(kw_only=True)
class Causal(ModelOptions, StudyOptions, SeedOptions):
    """What changes in the ViT itself when a layer is ablated; with --clt, does C agree?

    Example: vit-clt causal --model digits --tokens cls --fill mean --out out/causal
    """

    clt: str | None = None
    """CLT folder or Hub id whose contribution scores are compared. The effects need none."""
    any_teacher: bool = False
    """Compare the CLT also with a model it was not trained on."""
    tokens: TokenKind = "cls"
    """Rows scored at the targets."""
    ablated: TokenKind = "all"
    """Rows overwritten at the ablated layers."""
    site: Site = "mlp"
    """Outputs that are overwritten: those of MLPs or of attention layers."""
    fill: Fill = "mean"
    """What is written there: the mean over the images, another image's rows, or zeros."""
    pairs: bool = False
    """Ablate every two layers together as well."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates."""

    def run(self) -> None:
        """Ablate, draw, and report."""
        from vit_clt.analysis import causal_effects, contribution_moments, score
        from vit_clt.analysis.causal.agreement import depth_agreement, score_agreement
        from vit_clt.analysis.causal.figure import agreement_table, causal_report, output_table
        from vit_clt.analysis.causal.targets import PATHS
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.analysis.stats.names import layer_sets
        from vit_clt.analysis.stats.ranks import RankAgreement
        from vit_clt.choices import ScoreKind
        from vit_clt.metrics import metrics_json
        from vit_clt.zero_shot import ZeroShot

        folder = self.study_folder("causal")
        if self.any_teacher and self.clt is None:
            raise InputError("any_teacher", "is given without a CLT; expected --clt beside it.")
        clt = None
        if self.clt is None:
            vit = self.load_vit(self.device)
            data = self.load_images(vit)
        else:
            shared = {field.name: getattr(self, field.name) for field in fields(ModelOptions)}
            options = CLTOptions(**shared, clt=self.clt, any_teacher=self.any_teacher)
            vit, clt, data = options.load_all(self.device)
        effects = causal_effects(
            vit,
            data,
            ZeroShot(vit, data.class_names, self.templates),
            tokens=self.tokens,
            ablated=self.ablated,
            fill=self.fill,
            site=self.site,
            sets=layer_sets(vit.cfg.n_layers, pairs=self.pairs),
            seed=self.seed,
            progress=True,
        )
        agreement: dict[str, RankAgreement] = {}
        metrics, described, l0 = effects.metrics(), "", None
        if clt is not None:
            moments = contribution_moments(vit, clt, data, progress=True)
            kinds: tuple[ScoreKind, ...] = ("centred", "projection")
            scores = [score(moments, tokens=self.tokens, kind=kind) for kind in kinds]
            agreement, l0 = score_agreement(effects, scores), scores[0].l0
            for path in PATHS:
                agreement[f"depth alone, {path} effect on y"] = depth_agreement(effects, path)
            for name, found in agreement.items():
                metrics += found.metrics(name.replace(", ", "_").replace(" ", "_"), effects.n)
            described = f"CLT {self.clt}, L0 = {l0:.1f} a token on these rows"
        folder.open()
        shown = output_table(effects)
        caption = (
            f"{data.name}, N = {effects.n}, {self.site} outputs, {self.ablated} rows ablated "
            f"(fill: {self.fill}, seed {self.seed}), templates: {self.templates}; top-1 % / loss "
            "(nats)"
        )
        write_study(
            folder,
            "causal",
            effects.figure(),
            effects.to_frame(),
            caption,
            shown=shown,
            page=causal_report(effects, agreement, described),
            png=self.png,
        )
        context = {
            "command": "causal",
            "data": data.name,
            "split": data.split,
            "tokens": self.tokens,
            "trajectory": "teacher",
            "l0": l0,
            "fill": self.fill,
            "seed": self.seed,
            "ablated": self.ablated,
            "site": self.site,
            "templates": self.templates,
            "model": vit.cfg.model,
            "clt": self.clt,
        }
        folder.write("metrics.json", metrics_json(metrics, **context))
        print(caption)
        print_table(shown)
        if agreement:
            print(f"\nC(s->l) against these effects on {self.tokens} rows, {described}")
            print_table(agreement_table(agreement))
            print(
                "in brackets 95 % of bootstrap draws over images; permuted: what 97.5 % of rows of "
                "C with permuted sources stay below; depth alone: deeper sources first"
            )
        print(f"written to {folder.path}")
