"""`vit-clt reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import tyro

from vit_clt.choices import Backbone, Inputs, PaperSparsifier, Templates
from vit_clt.cli.command import Command
from vit_clt.cli.options import check_device
from vit_clt.cli.printed_table import print_table
from vit_clt.cli.training_options import with_every_option
from vit_clt.data.form_names import HELD_OUT, check_form
from vit_clt.errors import InputError, renamed
from vit_clt.transcoder.train_config import PRESETS, TrainConfig

if TYPE_CHECKING:
    from vit_clt.analysis.reproduction.cells import Recipe
    from vit_clt.analysis.reproduction.plan import CellCost
    from vit_clt.outputs import OutputFolder


@dataclass(kw_only=True)
class Reproduce(Command):
    """The source paper's evaluation: train and measure its CLTs, report beside its numbers.

    There are 18 cells (data set, backbone, sparsifier) at the size of the paper; --plan says what
    they cost. An interrupted run goes on with --resume, also in the middle of a cell.

    Example: vit-clt reproduce --datasets cifar100 --backbones ViT-B/32 --plan
    """

    begun = "reproduce.json"

    out: Path = Path("out/reproduce")
    """Output folder: absent or empty, unless --overwrite or --resume."""
    datasets: tuple[str, ...] = ("cifar100", "coco", "imagenet100")
    """Data sets, from the Hub or, with :PATH, from local files (cifar100:PATH coco:PATH ...)."""
    backbones: tuple[Backbone, ...] = ("ViT-B/32", "ViT-B/16")
    """CLIP backbones whose MLPs are replaced."""
    sparsifiers: tuple[PaperSparsifier, ...] = get_args(PaperSparsifier)
    """Sparsifiers, each trained in a CLT of its own."""
    pretrained: str = "openai"
    """open_clip tag of the weights of both backbones; "random" for random weights."""
    weights: tuple[str, ...] = ()
    """Weights files to use in place of --pretrained: ViT-B/32=PATH ViT-B/16=PATH."""
    templates: Templates = "single"
    """Zero-shot prompts: single ("a photo of a {}.") or ensemble (the 18 CIFAR templates). The
    paper does not name its own."""
    inputs: tuple[Inputs, ...] = ("stream",)
    """Where the codes of the cascade come from: the live stream (stream), a clean pass (teacher),
    or both."""
    k: int = 128
    """Active features per token row and layer (for JumpReLU: the target of L0)."""
    n_features: int | None = None
    """Features per layer; default: 16 times the width."""
    limit: int | None = None
    """Use only the first N images of either split."""
    smoke: bool = False
    """Only check that everything runs, in minutes: 8 images and 256 features; the numbers mean
    nothing."""
    plan: bool = False
    """Print what the study will cost, and stop."""
    resume: bool = False
    """Go on with the study in --out; finished cells are kept."""
    training: tyro.conf.OmitArgPrefixes[TrainConfig] = field(
        default_factory=lambda: PRESETS["paper"]
    )

    @classmethod
    def defaults(cls, args: Sequence[str]) -> Reproduce:
        """The options' defaults; --smoke makes them small."""
        if "--smoke" not in args:
            return cls(training=with_every_option(PRESETS["paper"]))
        from vit_clt.analysis.reproduction.cells import smoke_recipe

        small = smoke_recipe()
        return cls(
            k=small.k,
            n_features=small.n_features,
            limit=small.limit,
            training=with_every_option(small.training),
        )

    def check(self) -> None:
        """Refuse options that contradict one another, and data that are not there."""
        self.refuse_both(overwrite=self.overwrite, resume=self.resume)
        for name in ("datasets", "backbones", "sparsifiers"):
            if not getattr(self, name):
                raise InputError(name, "is empty; expected at least one.")
        with renamed(data="datasets"):
            for form in self.datasets:
                name, _, place = form.partition(":")
                if name in HELD_OUT and place:  # the study refuses others
                    check_form(form, None)
        if not self.plan:
            super().check()

    def run(self) -> None:
        """Plan, run every cell that is missing, and report."""
        import torch

        from vit_clt.analysis.reproduction import evaluation
        from vit_clt.analysis.reproduction.cells import cells, is_finished
        from vit_clt.analysis.reproduction.plan import total_needs
        from vit_clt.analysis.reproduction.run import run_cells
        from vit_clt.analysis.reproduction.study import Reproduction
        from vit_clt.inputs import read_json
        from vit_clt.outputs import check_same
        from vit_clt.training.cost import check_resources

        recipe, study_file = self._recipe(), evaluation.STUDY_FILE
        materials = evaluation.Materials.named(self.datasets, self.pretrained, self.weights)
        chosen = (list(dict.fromkeys(names)) for names in (self.backbones, self.sparsifiers))
        folder = None
        if not self.plan:
            more = [study_file, *evaluation.cell_files()]
            folder = self.folder_of(Reproduction, more=more, begun=study_file, resume=self.resume)
            if folder.resumes:
                before = read_json(folder.place / study_file)
                check_same(materials.started(recipe), before, f"the run in {self.out}")
        place, left = self.out if folder is None else folder.place, []
        for cell in cells(list(materials.forms), *chosen):
            if self.resume and is_finished(place, cell):
                print(f"{cell.name}: finished")
            else:
                left.append(cell)
        check_device(self.device)
        todo = evaluation.Evaluation(left, recipe, materials, self.device, plan_only=self.plan)
        if left:
            costs = todo.costs()
            self._say_cost(costs)
            if folder is not None:
                check_resources(total_needs(costs), out=self.out, device=torch.device(self.device))
        if folder is None:
            return
        folder.open()
        if not folder.resumes:
            folder.begin(materials.started(recipe))
        for bench, sparsifiers in todo.groups():
            print(f"{bench.dataset} {bench.backbone}: {', '.join(sparsifiers)}", flush=True)
            run_cells(folder.place, sparsifiers, bench, recipe, progress=True)
            # an unfinished study has a page too, written after every data set and backbone
            self._report(folder, recipe)
        if not left:
            self._report(folder, recipe)
        folder.finish()

    def _recipe(self) -> Recipe:
        from vit_clt.analysis.reproduction.cells import Recipe, smoke_recipe

        return replace(
            smoke_recipe() if self.smoke else Recipe(),
            training=self.training,
            n_features=self.n_features,
            k=self.k,
            templates=self.templates,
            inputs=tuple(dict.fromkeys(self.inputs)),
            limit=self.limit,
        )

    def _say_cost(self, costs: Sequence[CellCost]) -> None:
        from vit_clt.analysis.reproduction.plan import plan_table, total_needs
        from vit_clt.forecast.wording import duration

        if self.smoke:
            print("SMOKE RUN: everything is run, and none of its numbers means anything")
        print_table(plan_table(costs))
        print("\n".join(total_needs(costs).lines()))
        train = duration(sum(cost.train_seconds for cost in costs))
        measure = duration(sum(cost.measure_seconds for cost in costs))
        print(
            f"time: about {train} of training and {measure} of measuring on {self.device}, an "
            "estimate from a short trial: a smaller step scaled up, decoding of images not counted",
            flush=True,
        )

    def _report(self, folder: OutputFolder, recipe: Recipe) -> None:
        from vit_clt.analysis.reproduction.comparison import finished_cells
        from vit_clt.analysis.reproduction.study import Reproduction

        study = Reproduction(finished_cells(folder.place), recipe)
        page = folder.place / "report.html"
        last_line = f"{len(study.finished)} cells finished; report in {page}"
        self.report(folder, study, "reproduce", last_line, tables=False, finish=False)
