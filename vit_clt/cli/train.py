"""`vit-clt train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from vit_clt.cli.command import Command
from vit_clt.cli.fits import print_fit
from vit_clt.cli.options import ModelOptions
from vit_clt.cli.training_options import TrainingOptions, options_in, starting_options, value_of
from vit_clt.errors import InputError

if TYPE_CHECKING:
    from vit_clt.training.planned import PlannedRun
    from vit_clt.transcoder.config import CLTConfig
    from vit_clt.transcoder.train_config import TrainConfig

# options that may change when a run is resumed or repeated
_NOT_OF_THE_RUN = ("out", "overwrite", "resume", "config", "traceback", "device", "trackers")


@dataclass(kw_only=True)
class Train(ModelOptions, Command, TrainingOptions):
    """Train a CLT on a frozen ViT; the output folder is itself a --clt.

    An interrupted run goes on with the same command and --resume. Several processes are started by
    accelerate launch --multi_gpu --num_processes 4 -m vit_clt train ... (docs/scaling.md).

    Example: vit-clt train --model digits --data digits --n-features 512 --k 16 --out out/clt
    """

    imports = ("vit_clt.training.trainer",)
    begun: ClassVar[str | None] = "run.json"
    default_split = "train"

    config: Path | None = None
    """The run.json of an earlier run, whose options are then the defaults in place of a
    preset's."""
    k: int | None = None
    """Active features per token row and layer (for JumpReLU: the target of L0). Default: 128 for
    the paper preset, otherwise a quarter of the width, at most 32."""
    zero_cross_init: bool = False
    """Start the decoders that write to deeper layers at zero."""
    cross_layer: bool = True
    """Let features also write to deeper layers; --no-cross-layer trains a per-layer transcoder,
    whose features write to their own layer alone."""
    skip: bool = False
    """Add a linear map of a layer's own MLP input to its reconstruction."""
    resume: bool = False
    """Go on with the run in --out, from the beginning if it has no checkpoint yet."""
    trackers: tuple[str, ...] = ()
    """Trackers that accelerate knows, such as tensorboard or wandb, in addition to train.jsonl."""

    @classmethod
    def defaults(cls, args: Sequence[str]) -> Train:
        """The options' defaults, which depend on --preset or --config."""
        path = value_of("--config", args)
        if path is not None and value_of("--preset", args) is not None:
            raise InputError("--preset and --config are both set; expected one of them.")
        if path is not None and not Path(path).is_file():
            raise InputError("config", f"is {path}; found no such file.")
        options = (
            starting_options(args) if path is None else options_in(Path(path), cls, _NOT_OF_THE_RUN)
        )
        start = cls(out=Path(), **options)
        start.out = tyro.MISSING  # the option is required
        return start

    def check(self) -> None:
        """Refuse options that contradict one another, or belong to another sparsifier."""
        self.refuse_both(overwrite=self.overwrite, resume=self.resume)
        self.sparsifier_training()
        super().check()

    def run(self) -> None:
        """Train, save, and report."""
        from vit_clt.analysis.fit.training_study import Training, finished_training
        from vit_clt.training import run_folder
        from vit_clt.training.processes import is_main, own_device

        folder = self.folder_of(
            Training, more=run_folder.FILES, begun=self.begun, resume=self.resume
        )
        self.device = own_device(self.device)
        plan = self._planned()
        plan.check(self.trackers)
        if folder.resumes:
            defaults = {field.name: field.default for field in fields(self)}
            plan = run_folder.resumed(plan, self._options(plan), folder.place, defaults)
            if folder.is_finished:
                folder.close()
                print(f"{folder.path} is finished; nothing to do")
                return
        plan.check_resources(self.out)
        if not folder.resumes:  # run.json has the choice, or else the checkpoint
            plan = plan.decided()
        if is_main():
            for line in plan.forecast():
                print(line, flush=True)
            if not folder.resumes:
                run_folder.begin(folder, plan, self._options(plan))
        clt = run_folder.train_in(folder, plan, self.trackers)
        if is_main():
            log = folder.place / run_folder.LOG_FILE
            study = finished_training(log, plan.vit, clt, plan.settings, plan.data, self.device)
            fits = [] if study.fit is None else [study.fit]
            for fit in fits:
                print_fit(fit)
            if advice := study.advice():
                print(advice)
            last_line = f"{study.caption()}; saved to {folder.path}, curves in training.html"
            self.report(folder, study, "train", last_line, fits=fits, tables=False)

    def _planned(self) -> PlannedRun:
        from vit_clt.training.planned import PlannedRun

        vit = self.load_vit(self.device)
        self.k = self.k or (128 if self.preset == "paper" else min(32, vit.cfg.d_model // 4))
        config, settings = self.clt_config(vit.cfg.n_layers, vit.cfg.d_model), self.settings()
        data = self.load_images(vit)
        return PlannedRun(vit, data, config, settings, self.device, self.cache)

    def settings(self) -> TrainConfig:
        """The training settings, aimed at k active features."""
        assert self.k is not None
        settings = self.sparsifier_training()
        return replace(settings, sparsity=settings.sparsity.aimed_at(self.k))

    def clt_config(self, n_layers: int, d_model: int) -> CLTConfig:
        """Configuration of the CLT for a ViT of this depth and width.

        Raises:
            InputError: options contradict one another, or do not fit the width.
        """
        from vit_clt.transcoder.config import CLTConfig
        from vit_clt.transcoder.sparsifiers import sparsifier_with

        assert self.k is not None
        return CLTConfig(
            n_layers,
            d_model,
            16 * d_model if self.n_features is None else self.n_features,
            sparsifier_with(self.sparsifier, self.k, self.sparsifier_settings),
            zero_cross_init=self.zero_cross_init,
            cross_layer=self.cross_layer,
            skip=self.skip,
        )

    def _options(self, plan: PlannedRun) -> dict[str, Any]:
        """The options that repeat the run, as JSON values by name."""
        # a target of L0 that comes from --k is not written as an option
        settings = replace(plan.settings, sparsity=self.sparsifier_training().sparsity)
        run = replace(self, training=settings, n_features=plan.config.n_features)
        return run.as_json(*_NOT_OF_THE_RUN)
