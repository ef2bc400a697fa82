"""The paper's evaluation as cells (data set x backbone x sparsifier), and the recipe of a cell.

A cell trains a CLT on the training split and measures it on the held-out one
(`vit_clt.analysis.reproduction.run`). Its folder holds

    run.json                the settings it was started with
    checkpoints/            while it trains
    train.jsonl, clt/       the log, and the CLT
    reconstruction.csv, cascade.csv, faithfulness.csv, contributions.csv, contributions.html
    metrics.json
    cell.json               the settings it was finished with
    manifest.json           written last: the cell is finished

so an interrupted run goes on with the cell it was in, and within that cell with the step it was at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from vit_clt.analysis.reproduction.published import DATASETS, paper_faithfulness
from vit_clt.choices import Inputs, PaperSparsifier, Templates, TokenKind, check_choice
from vit_clt.data.prompts import CIFAR_TEMPLATES
from vit_clt.hooks import HookedViT
from vit_clt.outputs.manifest import MANIFEST_FILE, is_whole
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.sparsifiers import SPARSIFIERS
from vit_clt.transcoder.train_config import PRESETS, TrainConfig

BACKBONES = {"ViT-B/32": "ViT-B-32-quickgelu", "ViT-B/16": "ViT-B-16-quickgelu"}
"""open_clip's name of each backbone of the paper; OpenAI's weights need QuickGELU."""
DATASET_NAMES = tuple(DATASETS.values())
SPARSIFIER_NAMES = get_args(PaperSparsifier)
KINDS: tuple[TokenKind, ...] = ("cls", "patch", "all")
RUN_FILE, CELL_FILE, LOG_FILE = "run.json", "cell.json", "train.jsonl"
FILES = (
    RUN_FILE,
    LOG_FILE,
    "reconstruction.csv",
    "cascade.csv",
    "faithfulness.csv",
    "contributions.csv",
    "contributions.html",
    "metrics.json",
    CELL_FILE,
    *("clt/config.json", "clt/model.safetensors", "clt/README.md", MANIFEST_FILE),
)
BASELINE_FILE = "baseline.csv"


@dataclass(frozen=True)
class Cell:
    """One cell of the study, which is one CLT."""

    dataset: str
    backbone: str
    sparsifier: str

    @property
    def name(self) -> str:
        """Name for messages, such as "coco ViT-B/32 relu_topk"."""
        return f"{self.dataset} {self.backbone} {self.sparsifier}"

    @property
    def path(self) -> Path:
        """Folder of the cell, relative to that of the study."""
        return group_path(self.dataset, self.backbone) / self.sparsifier


def group_path(dataset: str, backbone: str) -> Path:
    """Folder of all cells of one data set and backbone, relative to that of the study."""
    return Path(dataset) / backbone.replace("/", "-")


def cells(
    datasets: Sequence[str] = DATASET_NAMES,
    backbones: Sequence[str] = tuple(BACKBONES),
    sparsifiers: Sequence[str] = SPARSIFIER_NAMES,
) -> list[Cell]:
    """A cell for every combination; cells with the same teacher and images are neighbours."""
    return [Cell(d, b, s) for d in datasets for b in backbones for s in sparsifiers]


@dataclass(frozen=True)
class Recipe:
    """How every cell is trained and measured; the defaults are the paper's where it gives them."""

    training: TrainConfig = PRESETS["paper"]
    n_features: int | None = None
    """Features per layer; None stands for 16 times the width."""
    k: int = 128
    """Active features per token row and layer; for JumpReLU the target of L0 (our choice: the paper
    does not say how its L0 was set)."""
    templates: Templates = "single"
    """Zero-shot prompts."""
    prompts: int = len(CIFAR_TEMPLATES)
    """Number of CIFAR templates that the prompt measures compare."""
    inputs: tuple[Inputs, ...] = ("stream",)
    """Inputs that codes come from in the cascade."""
    ranges: tuple[tuple[TokenKind, int], ...] = field(
        default_factory=lambda: tuple(
            (row.tokens, row.first_layer) for row in paper_faithfulness().itertuples()
        )
    )
    """Token kind and first layer of the faithfulness ranges; the paper's are those of table 5."""
    limit: int | None = None
    """Number of first images of either split that are used; None for all."""
    smoke: bool = False
    """Whether the run only checks that everything works, so that its numbers mean nothing."""

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        values = asdict(self) | {"training": self.training_options()}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def training_options(self) -> dict[str, Any]:
        """The options of training by name, those of every sparsifier included."""
        flat: dict[str, Any] = {}
        for kind in (SPARSIFIERS[name].training for name in SPARSIFIER_NAMES):
            options = self.training.sparsity.options_of(kind) or kind()
            flat |= replace(self.training, sparsity=options).flat()
        return flat

    def config(self, vit: HookedViT, sparsifier: str) -> CLTConfig:
        """Configuration of the CLT of a cell with this teacher and sparsifier."""
        check_choice("sparsifiers", sparsifier, SPARSIFIER_NAMES)
        width = vit.cfg.d_model
        return CLTConfig(
            vit.cfg.n_layers,
            width,
            16 * width if self.n_features is None else self.n_features,
            SPARSIFIERS[sparsifier].for_l0(self.k),
        )

    def settings(self, sparsifier: str) -> TrainConfig:
        """Training settings of the CLT of a cell with this sparsifier."""
        kind = SPARSIFIERS[sparsifier].training
        options = self.training.sparsity.options_of(kind) or kind()
        return replace(self.training, sparsity=options.aimed_at(self.k))


def smoke_recipe() -> Recipe:
    """A recipe that runs everything on 8 images with 256 features; its numbers mean nothing."""
    return Recipe(
        training=TrainConfig(epochs=1, batch_size=128, log_every=1, checkpoint_every=2),
        n_features=256,
        k=round(128 * 256 / (16 * 768)),
        prompts=2,
        limit=8,
        smoke=True,
    )


def is_finished(root: Path, cell: Cell) -> bool:
    """Whether a cell below `root` is trained and measured, and its files are whole."""
    whole = is_whole(root / cell.path, "reproduce", RUN_FILE)
    return (root / cell.path / CELL_FILE).is_file() if whole is None else whole
