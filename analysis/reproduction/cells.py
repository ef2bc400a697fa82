"""The paper's evaluation as cells, data set x backbone x sparsifier, and how each is made.

A cell trains a CLT on the training split and measures it on the held-out one
(`vit_clt.analysis.reproduction.run`). Its folder holds

    run.json                what it was started with
    checkpoints/            while it trains
    train.jsonl, clt/       the log, and the CLT
    reconstruction.csv, cascade.csv, faithfulness.csv, contributions.csv, contributions.html
    metrics.json
    cell.json               written last: the cell is finished

so a run that was killed goes on with the cell it was in, and inside it with the step it was at.
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
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.sparsifiers import SPARSIFIERS
from vit_clt.transcoder.train_config import PRESETS, TrainConfig

BACKBONES = {"ViT-B/32": "ViT-B-32-quickgelu", "ViT-B/16": "ViT-B-16-quickgelu"}
"""The paper's names to open_clip's; OpenAI's weights need QuickGELU."""
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
)
BASELINE_FILE = "baseline.csv"


@dataclass(frozen=True)
class Cell:
    """One CLT of the study."""

    dataset: str
    backbone: str
    sparsifier: str

    @property
    def name(self) -> str:
        """For messages: "coco ViT-B/32 relu_topk"."""
        return f"{self.dataset} {self.backbone} {self.sparsifier}"

    @property
    def path(self) -> Path:
        """Folder below the study's."""
        return group_path(self.dataset, self.backbone) / self.sparsifier


def group_path(dataset: str, backbone: str) -> Path:
    """Folder of all cells of one data set and backbone, below the study's."""
    return Path(dataset) / backbone.replace("/", "-")


def cells(
    datasets: Sequence[str] = DATASET_NAMES,
    backbones: Sequence[str] = tuple(BACKBONES),
    sparsifiers: Sequence[str] = SPARSIFIER_NAMES,
) -> list[Cell]:
    """Every combination, those that share a teacher and its images next to each other."""
    return [Cell(d, b, s) for d in datasets for b in backbones for s in sparsifiers]


@dataclass(frozen=True)
class Recipe:
    """How every cell is trained and measured; the defaults are the paper's where it speaks."""

    training: TrainConfig = PRESETS["paper"]
    n_features: int | None = None
    """Features per layer; None: 16 times the width."""
    k: int = 128
    """Active features a token and layer; the L0 that JumpReLU is steered to (ours: the paper does
    not say how its L0 was set)."""
    templates: Templates = "single"
    """Zero-shot prompts."""
    prompts: int = len(CIFAR_TEMPLATES)
    """How many of the CIFAR templates the prompt measures compare."""
    inputs: tuple[Inputs, ...] = ("stream",)
    """Where codes come from in the cascade."""
    ranges: tuple[tuple[TokenKind, int], ...] = field(
        default_factory=lambda: tuple(
            (row.tokens, row.first_layer) for row in paper_faithfulness().itertuples()
        )
    )
    """Token kind and first layer of the faithfulness ranges; the paper's are those of table 5."""
    limit: int | None = None
    """First N images of either split only."""
    smoke: bool = False
    """Whether this only tries that everything runs: its numbers mean nothing."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self) | {"training": self.training_options()}
        found: dict[str, Any] = json.loads(json.dumps(values))
        return found

    def training_options(self) -> dict[str, Any]:
        """How cells are trained, by name, with the options of each sparsifier."""
        found: dict[str, Any] = {}
        for kind in (SPARSIFIERS[name].training for name in SPARSIFIER_NAMES):
            options = self.training.sparsity.options_of(kind) or kind()
            found |= replace(self.training, sparsity=options).flat()
        return found

    def config(self, vit: HookedViT, sparsifier: str) -> CLTConfig:
        """The CLT of a cell."""
        check_choice("sparsifiers", sparsifier, SPARSIFIER_NAMES)
        width = vit.cfg.d_model
        return CLTConfig(
            vit.cfg.n_layers,
            width,
            16 * width if self.n_features is None else self.n_features,
            SPARSIFIERS[sparsifier].for_l0(self.k),
        )

    def settings(self, sparsifier: str) -> TrainConfig:
        """How the CLT of a cell is trained."""
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
    """Whether a cell below `root` needs nothing any more."""
    return (root / cell.path / CELL_FILE).is_file()
