"""`vit-clt audit`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from vit_clt.choices import Preset, Templates, TokenKind
from vit_clt.cli.options import (
    CLTOptions,
    StudyOptions,
    check_held_out,
    distinct_names,
)
from vit_clt.cli.training_options import preset_in
from vit_clt.errors import InputError, renamed
from vit_clt.transcoder.train_config import PRESETS, TrainConfig

if TYPE_CHECKING:
    from vit_clt.analysis.auditing.rivals import RivalRun, SavedCLTs
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder

STUDY_FILE, RUNS = "study.json", "runs"


@dataclass(kw_only=True)
class Audit(CLTOptions, StudyOptions):
    """Can this CLT's attribution be believed? Diagnostics (D1 to D8, D10, D11) and a verdict.

    The plan and its cost are printed first. The transcoders that the CLT is compared with (rivals)
    are trained in OUT/runs, where --resume goes on, or given with --per-layer and --variants.
    --no-train leaves out those that are not given.

    Example: vit-clt audit --clt out/clt --data digits --preset demo --out out/audit
    """

    tokens: TokenKind = "cls"
    """Token rows that are scored, and overwritten at the target."""
    target: int = -1
    """Layer whose reconstruction is taken apart into source layers; -1 is the last."""
    keep: int = 4
    """Number of source layers that are kept."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: single ("a photo of a {}.") or ensemble (the 18 CIFAR templates)."""
    train_data: str | None = None
    """Images that rivals and ridge regressions are fitted on, a form as in --data; default: the
    train split of --data."""
    train_limit: int | None = None
    """Use only the first N of these images."""
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

    def run(self) -> None:
        """Plan, train what is missing, audit, and report."""
        from vit_clt.analysis import audit
        from vit_clt.analysis.auditing.evidence import check_question
        from vit_clt.analysis.auditing.rivals import train_rivals
        from vit_clt.analysis.auditing.study import Audit as AuditStudy
        from vit_clt.training.processes import asked_to_stop
        from vit_clt.zero_shot import ZeroShot

        for one, other in (
            ("resume", "overwrite"),
            ("full", "variants"),
            ("full", "no-train"),
            ("k", "no-train"),
        ):
            if self._is_set(one) and self._is_set(other):
                raise InputError(f"--{one} and --{other} are both set; expected one of them.")
        resume = STUDY_FILE if self.resume else None
        folder = self.folder_of(AuditStudy, more=[STUDY_FILE], resume=resume)
        vit, clt, data = self.load_all(self.device)
        check_question(vit, data, self.tokens, self.target, self.keep, "keep")
        fit = self._training_images(vit, data)
        zs = ZeroShot(vit, data.class_names, self.templates)
        runs = self._planned(clt)
        given = self._given(vit)
        self._print_plan(vit, fit, runs)
        if self.plan:
            return
        folder.open()
        if not folder.resumes:
            folder.write(STUDY_FILE, json.dumps(asdict(self), indent=1, default=str) + "\n")
        with asked_to_stop() as stop:
            rivals = train_rivals(
                vit,
                fit,
                runs,
                self.out / RUNS,
                overwrite=self.overwrite,
                should_stop=stop,
                progress=True,
            )
        rivals = replace(
            rivals,
            per_layer=given.get("per_layer", rivals.per_layer),
            variants=given.get("variants", rivals.variants),
            given={"per_layer": self.per_layer, "variants": self.variants},
        )
        study = audit(
            vit,
            clt,
            data,
            zs,
            fit=fit,
            rivals=rivals,
            tokens=self.tokens,
            target=self.target,
            k=self.keep,
            seed=self.training.seed,
            progress=True,
        )
        page = folder.path / "audit.html"
        self.report(folder, study, "audit", f"verdict: {study.verdict}; open {page}")

    def _is_set(self, option: str) -> bool:
        return not self.train if option == "no-train" else bool(getattr(self, option) or 0)

    def _training_images(self, vit: HookedViT, data: ImageData) -> ImageData:
        # --split names the images that are studied, not those that are trained on
        options = replace(
            self, data=self.train_data or self.data, limit=self.train_limit, split=None
        )
        with renamed(data="train_data", limit="train_limit"):
            fit = options.load_images(vit, "train")
        check_held_out(fit, data)
        return fit

    def _planned(self, clt: CrossLayerTranscoder) -> list[RivalRun]:
        from vit_clt.analysis.auditing.rivals import planned_rivals

        if not self.train:
            return []
        sparsifier = clt.config.sparsifier
        k = sparsifier.expected_l0 if self.k is None else self.k
        if k is None:
            raise InputError(
                "k",
                f"is missing; a {sparsifier.label} CLT does not say the L0 its rivals should have, "
                "expected a number (vit-clt reconstruct measures its own).",
            )
        if k < 1:
            raise InputError("k", f"is {k}; expected at least 1.")
        runs = planned_rivals(clt.config, self.training, k, full=self.full)
        given = {"per_layer": self.per_layer, "variant": self.variants}
        return [run for run in runs if not given.get(run.role)]

    def _given(self, vit: HookedViT) -> dict[str, SavedCLTs]:
        """Rivals already trained, by option, each checked against the teacher."""
        from vit_clt.analysis.auditing.rivals import SavedCLTs

        clts = {}
        for option, places in (("per_layer", self.per_layer), ("variants", self.variants)):
            if not places:
                continue
            if len(set(places)) < len(places):
                raise InputError(option, "names one folder twice; expected different ones.")
            saved = SavedCLTs(dict(zip(distinct_names(places), places, strict=True)), self.device)
            for name, clt in saved:
                if clt.config.cross_layer == (option == "per_layer"):
                    kind = "cross-layer" if clt.config.cross_layer else "per-layer"
                    raise InputError(option, f"names {name}, which is a {kind} transcoder.")
                self.check_teacher(vit, clt)
            clts[option] = saved
        return clts

    def _print_plan(self, vit: HookedViT, fit: ImageData, runs: Sequence[RivalRun]) -> None:
        """Print what will be trained, and its cost by formula and by short trials."""
        from vit_clt.analysis.auditing.rivals import is_finished
        from vit_clt.training.cost import duration, estimate
        from vit_clt.training.trial import seconds_per_step
        from vit_clt.transcoder.model import CrossLayerTranscoder

        missing = [run for run in runs if not is_finished(run, self.out / RUNS) or self.overwrite]
        finished = (
            f"; finished already: {len(runs) - len(missing)}" if len(missing) < len(runs) else ""
        )
        if not missing:
            print(f"nothing is trained{finished}")
            return
        total, memory, disk = 0.0, 0, 0
        for run in missing:
            needs = estimate(
                run.config,
                run.settings,
                n_images=len(fit),
                n_tokens=vit.cfg.n_tokens,
                teacher_parameters=sum(p.numel() for p in vit.parameters()),
                device=self.device,
            )
            clt = CrossLayerTranscoder(run.config, backend=run.settings.backend).to(self.device)
            images = len(fit) - run.settings.held_out(len(fit))
            steps = -(-images * vit.cfg.n_tokens // run.settings.batch_size) * run.settings.epochs
            seconds = steps * seconds_per_step(vit, clt, fit, run.settings)
            print(
                f"{run.name}: {run.config.n_features} features a layer, "
                f"{run.config.n_parameters() / 1e6:.1f} M parameters, {steps:,} steps, about "
                f"{duration(seconds)}",
                flush=True,
            )
            total += seconds
            memory = max(memory, sum(needs.memory.values()))
            disk += needs.disk["result"]
        print(
            f"to train: {len(missing)}, on {fit.name} ({len(fit)} images), about "
            f"{duration(total)}, {memory / 2**30:.1f} GiB of memory, {disk / 2**30:.1f} GiB of "
            f"disk{finished}; then the studies, a few passes of the ViT for each layer",
            flush=True,
        )
