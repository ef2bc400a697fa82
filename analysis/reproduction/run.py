"""A cell of the paper's evaluation is run: its CLT is trained, then measured on the held-out split.

`vit_clt.analysis.reproduction.cells` lists the files that a cell writes, and their order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vit_clt.analysis.contributions.figure import contribution_figure
from vit_clt.analysis.contributions.moments import contribution_moments
from vit_clt.analysis.contributions.scores import ALL_SCORES, score
from vit_clt.analysis.fit.cascade_study import cascade
from vit_clt.analysis.fit.faithfulness_study import surrogate_faithfulness
from vit_clt.analysis.fit.reconstruction_study import reconstruction
from vit_clt.analysis.reporting.tables import csv_table
from vit_clt.analysis.reporting.training_page import read_log
from vit_clt.analysis.reproduction.cells import (
    BASELINE_FILE,
    CELL_FILE,
    FILES,
    KINDS,
    LOG_FILE,
    RUN_FILE,
    Cell,
    Recipe,
    group_path,
    is_finished,
)
from vit_clt.analysis.stats.readings import gather_readings
from vit_clt.data.images import ImageData
from vit_clt.data.prompts import CIFAR_TEMPLATES, TEMPLATE_SETS
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.inputs import read_json
from vit_clt.metrics import Metric, metrics_json
from vit_clt.outputs import OutputFolder, check_same
from vit_clt.outputs.manifest import Manifest
from vit_clt.outputs.staging import staged_file
from vit_clt.progress import Progress
from vit_clt.readouts.base import Outcome
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.training.checkpoints import Checkpoints
from vit_clt.training.processes import asked_to_stop
from vit_clt.training.trainer import train
from vit_clt.transcoder.model import CrossLayerTranscoder


class Bench:
    """The teacher, images and classifiers that the cells of one data set and backbone share.

    Args:
        dataset: our name of the data set.
        backbone: the paper's name of the backbone.
        vit: the teacher.
        train_data: images that CLTs are trained on.
        held_out: labelled images that CLTs are measured on.
        recipe: the recipe, which names the zero-shot prompts.

    Raises:
        InputError: the recipe compares fewer than two prompts, or more than there are.
    """

    def __init__(
        self,
        dataset: str,
        backbone: str,
        vit: HookedViT,
        train_data: ImageData,
        held_out: ImageData,
        recipe: Recipe,
    ):
        self.dataset, self.backbone, self.vit = dataset, backbone, vit
        self.train_data, self.held_out = train_data, held_out
        names = held_out.class_names
        if not 2 <= recipe.prompts <= len(CIFAR_TEMPLATES):
            raise InputError(
                "prompts", f"is {recipe.prompts}; expected 2 to {len(CIFAR_TEMPLATES)} templates."
            )
        # both sets are measured, to see which fits the paper's baseline; a smoke run saves the time
        sets = [recipe.templates] if recipe.smoke else list(TEMPLATE_SETS)
        self.classifiers = {name: ZeroShot(vit, names, name) for name in sets}
        self.heads = [
            ZeroShot(vit, names, [template]) for template in CIFAR_TEMPLATES[: recipe.prompts]
        ]

    def facts(self) -> dict[str, Any]:
        """The teacher and the data of a cell, for its files."""
        return {
            "teacher": asdict(self.vit.identity()),
            "trained_on": {"name": self.train_data.name, "n_images": len(self.train_data)},
            "measured_on": {"name": self.held_out.name, "n_images": len(self.held_out)},
            "left_out": self.held_out.left_out,
        }


@torch.no_grad()
def teacher_baselines(bench: Bench, *, seed: int = 0, progress: bool = False) -> pd.DataFrame:
    """Readings of the unaltered teacher on the held-out split, a row per set of templates.

    Columns: templates, top1 (fraction), top1_low, top1_high, loss (nats), loss_low, loss_high, n,
    and any_hit where images have several known classes.
    """
    data, vit = bench.held_out, bench.vit
    outcomes: dict[str, list[Outcome]] = {name: [] for name in bench.classifiers}
    n_batches = -(-len(data) // data.batch_size)
    for images, labels in Progress(data, "unaltered teacher", n_batches, disable=not progress):
        embeddings = vit.encode_image(images.to(vit.device))
        for name, zs in bench.classifiers.items():
            outcomes[name].append(zs.read(embeddings, labels))
    readings = gather_readings(outcomes, seed, data.label_sets)
    return pd.DataFrame({"templates": name, **readings[name].columns()} for name in outcomes)


def run_cells(
    root: Path | str,
    sparsifiers: Sequence[str],
    bench: Bench,
    recipe: Recipe,
    *,
    progress: bool = False,
) -> None:
    """Run the cells of one data set and backbone, after the unaltered teacher (baseline.csv).

    Args:
        root: folder of the study.
        sparsifiers: the sparsifiers of the cells.
        bench: teacher and images.
        recipe: how cells are trained and measured.
        progress: show progress bars.

    Raises:
        InputError: what `run_cell` refuses.
    """
    group = Path(root) / group_path(bench.dataset, bench.backbone)
    if not (group / BASELINE_FILE).is_file():
        baselines = teacher_baselines(bench, seed=recipe.training.seed, progress=progress)
        with staged_file(group / BASELINE_FILE) as staging:
            staging.write_text(csv_table(baselines), encoding="utf-8")
    for sparsifier in sparsifiers:
        run_cell(root, sparsifier, bench, recipe, progress=progress)


def run_cell(
    root: Path | str, sparsifier: str, bench: Bench, recipe: Recipe, *, progress: bool = False
) -> Path:
    """Train and measure what is missing of one cell, and return its folder.

    Args:
        root: folder of the study.
        sparsifier: "jumprelu", "relu_topk" or "abs_topk".
        bench: teacher and images.
        recipe: how the cell is trained and measured.
        progress: show progress bars.

    Raises:
        InputError: the folder holds a cell of another recipe, teacher or data; or what `train`,
            `cascade`, `surrogate_faithfulness` and `contribution_scores` refuse.
        Stopped: SIGTERM or Ctrl-C has come, and a last checkpoint is written.
    """
    root = Path(root)
    cell = Cell(bench.dataset, bench.backbone, sparsifier)
    started = {"cell": asdict(cell), "recipe": recipe.to_json(), **bench.facts()}
    folder = OutputFolder(root / cell.path, FILES, begun=RUN_FILE, resume=True, command="reproduce")
    if folder.resumes:
        check_same(started, read_json(folder.path / RUN_FILE), f"the run in {folder.path}")
    if is_finished(root, cell):
        folder.close()
        return folder.path
    if not folder.resumes:
        folder.begin(started)
    clt = _trained(folder, sparsifier, bench, recipe, progress)
    _measure(folder, clt, cell, bench, recipe, progress)
    folder.finish()
    return folder.path


def _trained(
    folder: OutputFolder, sparsifier: str, bench: Bench, recipe: Recipe, progress: bool
) -> CrossLayerTranscoder:
    clt_folder, checkpoints = folder.path / "clt", folder.path / "checkpoints"
    manifest = Manifest.read(folder.path)
    is_damaged = manifest is not None and "clt/model.safetensors" in manifest.damage(folder.path)
    if is_damaged or not (clt_folder / "model.safetensors").is_file():  # written last
        with folder.stream(LOG_FILE) as log, asked_to_stop() as stop:
            clt = train(
                bench.vit,
                bench.train_data,
                recipe.config(bench.vit, sparsifier),
                recipe.settings(sparsifier),
                checkpoints=checkpoints,
                resume=True,
                on_log=lambda record: print(json.dumps(record), file=log),
                should_stop=stop,
                progress=progress,
            )
        clt.save_pretrained(clt_folder)
    # nothing reads checkpoints any more; each cell's take three times the disk of its CLT
    Checkpoints(checkpoints).remove()
    clt = CrossLayerTranscoder.from_pretrained(clt_folder)
    return clt.to(bench.vit.device).eval().requires_grad_(False)


def _measure(
    folder: OutputFolder,
    clt: CrossLayerTranscoder,
    cell: Cell,
    bench: Bench,
    recipe: Recipe,
    progress: bool,
) -> None:
    began = time.perf_counter()
    vit, data, seed = bench.vit, bench.held_out, recipe.training.seed
    zs = bench.classifiers[recipe.templates]
    last = vit.cfg.n_layers - 1

    fit = reconstruction(vit, clt, data, seed=seed, progress=progress)
    folder.write("reconstruction.csv", csv_table(fit.frame))
    ranges = cascade(
        vit, clt, data, zs, tokens=KINDS, inputs=recipe.inputs, seed=seed, progress=progress
    )
    folder.write("cascade.csv", csv_table(ranges.to_frame()))

    faithful = []
    metrics = [*_training_metrics(folder.path, len(bench.train_data)), *ranges.metrics()]
    for tokens, first in recipe.ranges:
        study = surrogate_faithfulness(
            vit,
            clt,
            data,
            zs,
            layers=range(first, last + 1),
            tokens=tokens,
            templates=bench.heads,
            seed=seed,
            progress=progress,
        )
        faithful.append(
            study.to_frame().assign(
                first_layer=first, last_layer=last, l0=study.l0, no_op=study.no_op
            )
        )
        metrics += [
            replace(metric, name=f"faithfulness_{tokens}_{first}_to_{last}_{metric.name}")
            for metric in study.metrics()
        ]
    folder.write("faithfulness.csv", csv_table(pd.concat(faithful)))

    moments = contribution_moments(vit, clt, data, progress=progress)
    tables = [
        scores.to_frame().assign(
            tokens=tokens,
            kind=kind,
            reduce=reduce,
            data=scores.data,
            n=scores.n_images,
            l0=scores.l0,
            seed=scores.seed,
        )
        for tokens in ("cls", "patch")
        for kind, reduce in ALL_SCORES
        for scores in [score(moments, tokens=tokens, kind=kind, reduce=reduce, seed=seed)]
    ]
    folder.write("contributions.csv", csv_table(pd.concat(tables)))
    grid = [
        [score(moments, tokens=tokens, kind=kind, seed=seed) for kind in ("projection", "centred")]
        for tokens in ("cls", "patch")
    ]
    page = contribution_figure(grid).to_html(include_plotlyjs=True, div_id="contributions")
    folder.write("contributions.html", page)

    for column, unit in (("r2", "fraction"), ("cosine", "fraction"), ("mse", "raw^2")):
        for t in KINDS:
            floor = 0.0 if column == "r2" else fit.mean(t, f"{column}_floor")
            value = fit.mean(t, column)
            metrics.append(Metric(f"{column}_{t}", value, unit, len(data), floor=floor))
    context = {
        "command": "reproduce",
        "data": data.name,
        "split": data.split,
        "tokens": " ".join(KINDS),
        "trajectory": f"{' '.join(recipe.inputs)} for the cascade, stream for faithfulness, "
        "teacher for reconstruction and scores",
        "l0": fit.mean("all", "l0"),
        "dead": fit.mean("all", "dead"),
        "seed": seed,
        "templates": recipe.templates,
        "prompt_templates": [head.templates[0] for head in bench.heads],
        "floor": "those MLP rows at their mean over the images",
        "clt": clt.config.to_json(),
        "recipe": recipe.to_json(),
        **bench.facts(),
    }
    document = metrics_json(metrics, **context)
    folder.write("metrics.json", document)
    finished = {
        "cell": asdict(cell),
        "recipe": recipe.to_json(),
        **bench.facts(),
        "l0": context["l0"],
        "n": len(data),
        "seconds_measuring": time.perf_counter() - began,
        "versions": json.loads(document)["context"]["versions"],
    }
    folder.write(CELL_FILE, json.dumps(finished, indent=1) + "\n")


def _training_metrics(folder: Path, n_images: int) -> list[Metric]:
    """Metrics from the last log record of each kind; there are none if the log was lost."""
    records = read_log(folder / LOG_FILE)
    end = next((r for r in reversed(records) if r.get("event") == "end"), None)
    last = next((r for r in reversed(records) if "event" not in r), None)
    metrics = []
    if last is not None:
        metrics.append(Metric("dead_in_training", last["dead"], "fraction", n_images))
    if end is not None:
        rate = Metric("tokens_per_second", end["tokens_per_second"], "tokens/s", n_images)
        metrics += [Metric("training_seconds", end["seconds"], "seconds", n_images), rate]
    return metrics
