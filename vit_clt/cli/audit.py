"""`vit-clt audit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import tyro

from vit_clt.choices import Preset, TokenKind
from vit_clt.cli.command import StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.options import CLTOptions, check_clts
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.training_options import preset_in
from vit_clt.transcoder.train_config import PRESETS, TrainConfig

STUDY_FILE, RUNS = "study.json", "runs"


@dataclass(kw_only=True)
class Audit(ReadoutOptions, CLTOptions, StudyOptions):
    """Can this CLT's attribution be believed? Diagnostics (D1 to D8, D10 to D13) and a verdict.

    The plan and its cost are printed first. The transcoders that the CLT is compared with (rivals)
    are trained in OUT/runs, where --resume goes on, or given with --per-layer and --variants.
    --no-train leaves out those that are not given. Rivals and ridge regressions are fitted on
    --train-data.

    Example: vit-clt audit --clt out/demo/clt --data digits --preset demo --out out/audit
    """

    trains = True
    uncommon = (*CLTOptions.uncommon, "lr", "epochs", "batch_size", "readout")
    begun = STUDY_FILE

    tokens: TokenKind = "cls"
    """Token rows that are scored, and overwritten at the target."""
    target: int = -1
    """Layer whose reconstruction is taken apart into source layers; -1 is the last."""
    keep: int = 4
    """Number of source layers that are kept."""
    train: bool = True
    """Train the rivals that are not given."""
    full: bool = False
    """Train variants of every seed x sparsifier x initialisation, as wide as the CLT."""
    per_layer: tuple[str, ...] = ()
    """Per-layer transcoders of the same teacher, already trained (D1), instead of training them."""
    variants: tuple[str, ...] = ()
    """CLTs of the same teacher, already trained (D8), instead of training them."""
    k: int | None = None
    """Active features per token row and layer of the rivals; default: the k of the CLT."""
    plan: bool = False
    """Print what would be trained and what it would cost, and stop."""
    resume: bool = False
    """Go on with the audit in --out; finished rivals are kept."""
    preset: Preset = "small"
    """Hyperparameters of the rivals to start from; options override them."""
    training: tyro.conf.OmitArgPrefixes[TrainConfig] = field(
        default_factory=lambda: PRESETS["small"]
    )

    @classmethod
    def defaults(cls, args: Sequence[str]) -> Audit:
        """The options' defaults, which depend on --preset."""
        start = cls(out=Path(), clt="", training=preset_in(args))
        start.out = start.clt = tyro.MISSING  # both options are required
        return start

    def check(self) -> None:
        """Refuse options that contradict one another, and transcoders that are not there."""
        self.refuse_both(resume=self.resume, overwrite=self.overwrite)
        self.refuse_both(full=self.full, variants=self.variants)
        self.refuse_both(full=self.full, no_train=not self.train)
        self.refuse_both(k=self.k, no_train=not self.train)
        self.check_layers("target", [self.target])
        check_clts("per_layer", self.per_layer)
        check_clts("variants", self.variants)
        super().check()

    def run(self) -> None:
        """Plan, train what is missing, audit, and report."""
        from vit_clt.analysis import audit
        from vit_clt.analysis.auditing import rivals
        from vit_clt.analysis.auditing.evidence import check_question
        from vit_clt.analysis.auditing.rival_costs import rivals_forecast
        from vit_clt.analysis.auditing.study import Audit as AuditStudy
        from vit_clt.training.processes import asked_to_stop

        more = [STUDY_FILE, *(f"{RUNS}/*/{name}" for name in rivals.FILES)]
        folder = self.folder_of(AuditStudy, more=more, begun=self.begun, resume=self.resume)
        vit, clt, data = self.load_all(self.device)
        check_question(vit, data, self.tokens, self.target, self.keep, "keep")
        fit = self.load_train_images(vit, data)
        classifier = self.classifier(vit, data, self.training.seed)
        given = {"per_layer": self.per_layer, "variants": self.variants}
        saved = rivals.given_rivals(vit, given, self.device, any_teacher=self.any_teacher)
        runs = []
        if self.train:
            planned = rivals.planned_rivals(clt.config, self.training, self.k, full=self.full)
            runs = [run for run in planned if run.role not in saved]
        for line in rivals_forecast(
            vit, fit, runs, folder.place / RUNS, self.device, overwrite=self.overwrite
        ):
            print(line, flush=True)
        if self.plan:
            return
        folder.open()
        if not folder.resumes:
            folder.begin(asdict(self))
        with asked_to_stop() as stop:
            trained = rivals.train_rivals(
                vit, fit, runs, folder.place / RUNS, should_stop=stop, progress=True
            )
        fits = measured_fits(vit, {self.clt: clt}, data)
        study = audit(
            vit,
            clt,
            data,
            classifier,
            fit=fit,
            rivals=replace(
                trained,
                per_layer=saved.get("per_layer", trained.per_layer),
                variants=saved.get("variants", trained.variants),
                given=given,
            ),
            tokens=self.tokens,
            target=self.target,
            k=self.keep,
            seed=self.training.seed,
            progress=True,
        )
        page = folder.path / "audit.html"
        self.report(folder, study, "audit", f"{study.summary}; open {page}", fits=fits)
