"""`vit-clt reproduce`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import tyro

from vit_clt.choices import Backbone, Inputs, PaperSparsifier, Templates
from vit_clt.cli.options import Command, check_device, print_table
from vit_clt.cli.training_options import with_every_option
from vit_clt.errors import InputError
from vit_clt.transcoder.train_config import PRESETS, TrainConfig

if TYPE_CHECKING:
    from vit_clt.analysis.reproduction.cells import Cell, Recipe
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.outputs import OutputFolder
    from vit_clt.training.cost import Estimate

STUDY_FILE = "reproduce.json"
REPORT_FILES = ("report.html", "comparison.csv", "metrics.json")


@dataclass(kw_only=True)
class Reproduce(Command):
    """The source paper's evaluation: train and measure its CLTs, report beside its numbers.

    There are 18 cells (data set, backbone, sparsifier) at the size of the paper; --plan says what
    they cost. An interrupted run goes on with --resume, also in the middle of a cell.

    Example: vit-clt reproduce --datasets cifar100 --backbones ViT-B/32 --plan
    """

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

    def run(self) -> None:
        """Plan, run every cell that is missing, and report."""
        import torch

        from vit_clt.analysis.reproduction.cells import is_finished
        from vit_clt.inputs import read_json
        from vit_clt.outputs import check_same
        from vit_clt.training.cost import check_fits

        if self.resume and self.overwrite:
            raise InputError("--overwrite and --resume are both set; expected one of them.")
        recipe, forms, weights = self._recipe(), self._forms(), self._weights()
        cells = self._cells(list(forms))
        started = {"recipe": recipe.to_json(), "pretrained": self.pretrained, "weights": weights}
        folder = None if self.plan else self._folder()
        if folder is not None and folder.resumes:
            check_same(started, read_json(self.out / STUDY_FILE), f"the run in {self.out}")
        finished = [cell for cell in cells if self.resume and is_finished(self.out, cell)]
        for cell in finished:
            print(f"{cell.name}: finished")
        left = [cell for cell in cells if cell not in finished]
        teachers: dict[str, HookedViT] = {}
        images: dict[tuple[str, str], tuple[ImageData, ImageData]] = {}
        for dataset, backbone in dict.fromkeys((cell.dataset, cell.backbone) for cell in left):
            if backbone not in teachers:
                teachers[backbone] = self._teacher(backbone, weights)
            if not self.plan or ":" in forms[dataset]:
                images[dataset, backbone] = self._images(forms[dataset], teachers[backbone])
        if left:
            needs = self._say_cost(left, recipe, teachers, images)
            if folder is not None:
                check_fits(needs, out=self.out, device=torch.device(self.device))
        if folder is None:
            return
        if not folder.resumes:
            self._begin(folder, json.dumps(started, indent=1) + "\n")
        self._run_cells(folder, left, recipe, teachers, images)
        if not left:
            self._report(folder, recipe)

    # ---- before -----------------------------------------------------------------------------

    def _recipe(self) -> Recipe:
        from vit_clt.analysis.reproduction.cells import Recipe, smoke_recipe

        for name in ("k", "limit", "n_features"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(name, f"is {value}; expected at least 1.")
        return replace(
            smoke_recipe() if self.smoke else Recipe(),
            training=self.training,
            n_features=self.n_features,
            k=self.k,
            templates=self.templates,
            inputs=tuple(dict.fromkeys(self.inputs)),
            limit=self.limit,
        )

    def _forms(self) -> dict[str, str]:
        """Data form by the data set's name."""
        from vit_clt.analysis.reproduction.cells import DATASET_NAMES

        forms: dict[str, str] = {}
        for form in self.datasets:
            name, colon, path = form.partition(":")
            if name not in DATASET_NAMES or bool(colon) != bool(path):
                raise InputError(
                    "datasets",
                    f'holds "{form}"; expected {", ".join(DATASET_NAMES)}, each alone or '
                    "with :PATH.",
                )
            if name in forms:
                raise InputError("datasets", f"holds {name} twice; expected it once.")
            forms[name] = form
        return forms

    def _weights(self) -> dict[str, str]:
        """Weights file by backbone."""
        from vit_clt.analysis.reproduction.cells import BACKBONES

        files: dict[str, str] = {}
        for assignment in self.weights:
            backbone, _, path = assignment.partition("=")
            if backbone not in BACKBONES or not path:
                expected = " or ".join(f"{name}=PATH" for name in BACKBONES)
                raise InputError("weights", f'holds "{assignment}"; expected {expected}.')
            if backbone in files:
                raise InputError("weights", f"holds {backbone} twice; expected it once.")
            if not Path(path).is_file():
                raise InputError("weights", f"of {backbone} are {path}; expected a file there.")
            files[backbone] = path
        return files

    def _cells(self, datasets: Sequence[str]) -> list[Cell]:
        from vit_clt.analysis.reproduction.cells import cells

        for name in ("datasets", "backbones", "sparsifiers"):
            if not getattr(self, name):
                raise InputError(name, "is empty; expected at least one.")
        return cells(datasets, *map(tuple, map(dict.fromkeys, (self.backbones, self.sparsifiers))))

    def _folder(self) -> OutputFolder:
        from vit_clt.analysis.reproduction.cells import BASELINE_FILE, FILES, cells, group_path
        from vit_clt.outputs import OutputFolder

        files = [STUDY_FILE, *REPORT_FILES]
        for cell in cells():
            inside = (*FILES, "clt/config.json", "clt/model.safetensors", "clt/README.md")
            files += [str(cell.path / name) for name in inside]
            files.append(str(group_path(cell.dataset, cell.backbone) / BASELINE_FILE))
        return OutputFolder(self.out, files, self.overwrite, STUDY_FILE if self.resume else None)

    def _teacher(self, backbone: str, weights: dict[str, str]) -> HookedViT:
        from vit_clt.analysis.reproduction.cells import BACKBONES
        from vit_clt.hooks import HookedViT
        from vit_clt.training.engine import seeded_globally

        check_device(self.device)
        # a plan needs no weights, and must not download any
        random = self.plan or (self.pretrained == "random" and backbone not in weights)
        pretrained = None if random else weights.get(backbone, self.pretrained)
        # with the seed, random weights are the same when a study is resumed
        with seeded_globally(self.training.seed):
            return HookedViT.from_open_clip(BACKBONES[backbone], pretrained, device=self.device)

    def _images(self, form: str, vit: HookedViT) -> tuple[ImageData, ImageData]:
        from vit_clt.data.forms import load_data

        held_out = load_data(form, vit=vit, limit=self.limit)
        if held_out.split is None:
            raise InputError(
                "datasets", f'holds "{form}", a single file; expected a folder with both splits.'
            )
        return load_data(form, vit=vit, split="train", limit=self.limit), held_out

    def _say_cost(
        self,
        left: Sequence[Cell],
        recipe: Recipe,
        teachers: dict[str, HookedViT],
        images: dict[tuple[str, str], tuple[ImageData, ImageData]],
    ) -> Estimate:
        from vit_clt.analysis.reproduction.plan import IMAGES, plan, plan_table, total_needs
        from vit_clt.training.cost import duration

        counts = IMAGES | {name: (len(a), len(b)) for (name, _), (a, b) in images.items()}
        costs = plan(left, recipe, teachers, counts)
        needs = total_needs(costs)
        if recipe.smoke:
            print("SMOKE RUN: everything is run, and none of its numbers means anything")
        print_table(plan_table(costs))
        print("\n".join(needs.lines()))
        train, measure = (
            duration(sum(getattr(cost, name) for cost in costs))
            for name in ("train_seconds", "measure_seconds")
        )
        print(
            f"time: about {train} of training and {measure} of measuring on {self.device}, an "
            "estimate from a short trial: a smaller step scaled up, decoding of images not counted",
            flush=True,
        )
        return needs

    def _begin(self, folder: OutputFolder, study: str) -> None:
        from vit_clt.analysis.reproduction.cells import cells
        from vit_clt.training.checkpoints import Snapshots

        folder.open()
        for cell in cells():
            Snapshots(folder.path / cell.path / "checkpoints").remove()
        folder.write(STUDY_FILE, study)

    # ---- the cells, and after ---------------------------------------------------------------

    def _run_cells(
        self,
        folder: OutputFolder,
        left: Sequence[Cell],
        recipe: Recipe,
        teachers: dict[str, HookedViT],
        images: dict[tuple[str, str], tuple[ImageData, ImageData]],
    ) -> None:
        from vit_clt.analysis.reproduction.run import Bench, run_cells

        for (dataset, backbone), (train, held_out) in images.items():
            bench = Bench(dataset, backbone, teachers[backbone], train, held_out, recipe)
            sparsifiers = [
                cell.sparsifier
                for cell in left
                if (cell.dataset, cell.backbone) == (dataset, backbone)
            ]
            print(f"{dataset} {backbone}: {', '.join(sparsifiers)}", flush=True)
            run_cells(folder.path, sparsifiers, bench, recipe, progress=True)
            # an unfinished study has a page too, written after every data set and backbone
            self._report(folder, recipe)

    def _report(self, folder: OutputFolder, recipe: Recipe) -> None:
        from vit_clt.analysis.reproduction.comparison import (
            comparison,
            comparison_metrics,
            finished_cells,
        )
        from vit_clt.analysis.reproduction.report import differences_from_paper, study_report
        from vit_clt.metrics import metrics_json

        finished = finished_cells(folder.path)
        frame = comparison(finished)
        folder.write("comparison.csv", frame.to_csv(index=False))
        context = {
            "command": "reproduce",
            "data": " ".join(dict.fromkeys(one.cell.dataset for one in finished)),
            "tokens": "cls patch all",
            "trajectory": " ".join(recipe.inputs),
            "l0": {one.cell.name: one.facts["l0"] for one in finished},
            "seed": recipe.training.seed,
            "templates": recipe.templates,
            "floor": "those MLP rows at their mean over the images",
            "differences_from_paper": differences_from_paper(recipe),
            "recipe": recipe.to_json(),
        }
        folder.write("metrics.json", metrics_json(comparison_metrics(frame), **context))
        folder.write("report.html", study_report(finished, frame, recipe))
        print(
            f"{len(finished)} cells finished; report in {folder.path / 'report.html'}", flush=True
        )
