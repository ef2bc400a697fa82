"""The cells that are left to run, with their teachers and images, before and while they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_clt.analysis.reproduction.cells import (
    BACKBONES,
    BASELINE_FILE,
    DATASET_NAMES,
    FILES,
    Cell,
    Recipe,
    cells,
    group_path,
)
from vit_clt.analysis.reproduction.plan import IMAGES, CellCost, plan
from vit_clt.analysis.reproduction.run import Bench
from vit_clt.data.forms import load_data
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT

STUDY_FILE = "reproduce.json"


def cell_files() -> list[str]:
    """Names of the files of all cells, below the folder of the study."""
    files = []
    for cell in cells():
        files += [str(cell.path / name) for name in FILES]
        files.append(str(group_path(cell.dataset, cell.backbone) / BASELINE_FILE))
    return files


@dataclass(frozen=True)
class Materials:
    """Where the images and the weights of the teachers come from."""

    forms: Mapping[str, str]
    """Form of data by the data set's name."""
    pretrained: str
    """open_clip tag of the weights of both backbones; "random" for random weights."""
    weights: Mapping[str, str]
    """Weights file by backbone, in place of `pretrained`."""

    @classmethod
    def named(
        cls, datasets: Sequence[str], pretrained: str, weights: Sequence[str] = ()
    ) -> Materials:
        """The materials from their names.

        Args:
            datasets: "cifar100", "coco" and "imagenet100", each alone or with ":PATH".
            pretrained: as the field.
            weights: weights files as "BACKBONE=PATH".

        Raises:
            InputError: an unknown or repeated name, or a file that does not exist.
        """
        forms: dict[str, str] = {}
        for form in datasets:
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
        files: dict[str, str] = {}
        for assignment in weights:
            backbone, _, path = assignment.partition("=")
            if backbone not in BACKBONES or not path:
                expected = " or ".join(f"{name}=PATH" for name in BACKBONES)
                raise InputError("weights", f'holds "{assignment}"; expected {expected}.')
            if backbone in files:
                raise InputError("weights", f"holds {backbone} twice; expected it once.")
            if not Path(path).is_file():
                raise InputError("weights", f"of {backbone} are {path}; expected a file there.")
            files[backbone] = path
        return cls(forms, pretrained, files)

    def started(self, recipe: Recipe) -> dict[str, Any]:
        """What reproduce.json says of a study: a resumed one must have the same."""
        return {
            "recipe": recipe.to_json(),
            "pretrained": self.pretrained,
            "weights": dict(self.weights),
        }

    def teacher(self, backbone: str, device: str, seed: int, *, random: bool = False) -> HookedViT:
        """The hooked backbone; `random` weights need no download."""
        random = random or (self.pretrained == "random" and backbone not in self.weights)
        # with the seed, random weights are the same when a study is resumed
        pretrained = f"random:{seed}" if random else self.weights.get(backbone, self.pretrained)
        return HookedViT.from_open_clip(BACKBONES[backbone], pretrained, device=device)

    def images(
        self, dataset: str, vit: HookedViT, limit: int | None
    ) -> tuple[ImageData, ImageData]:
        """The training images and the held-out ones."""
        form = self.forms[dataset]
        held_out = load_data(form, vit=vit, limit=limit)
        if held_out.split is None:
            raise InputError(
                "datasets", f'holds "{form}", a single file; expected a folder with both splits.'
            )
        return load_data(form, vit=vit, split="train", limit=limit), held_out


class Evaluation:
    """Cells that are left to run, with their teachers and images.

    Args:
        left: the cells.
        recipe: how they are trained and measured.
        materials: where images and weights come from.
        device: torch device of the teachers.
        plan_only: load what `costs` needs, and download nothing.
    """

    def __init__(
        self,
        left: Sequence[Cell],
        recipe: Recipe,
        materials: Materials,
        device: str,
        *,
        plan_only: bool = False,
    ):
        self.left, self.recipe = left, recipe
        self.teachers: dict[str, HookedViT] = {}
        self.images: dict[tuple[str, str], tuple[ImageData, ImageData]] = {}
        for dataset, backbone in dict.fromkeys((cell.dataset, cell.backbone) for cell in left):
            if backbone not in self.teachers:
                seed = recipe.training.seed
                self.teachers[backbone] = materials.teacher(
                    backbone, device, seed, random=plan_only
                )
            if not plan_only or ":" in materials.forms[dataset]:
                vit = self.teachers[backbone]
                self.images[dataset, backbone] = materials.images(dataset, vit, recipe.limit)

    def costs(self) -> list[CellCost]:
        """The estimated cost of each cell."""
        counts = {name: (len(a), len(b)) for (name, _), (a, b) in self.images.items()}
        return plan(self.left, self.recipe, self.teachers, IMAGES | counts)

    def groups(self) -> Iterator[tuple[Bench, list[str]]]:
        """What the cells of each data set and backbone share, and their sparsifiers."""
        for (dataset, backbone), images in self.images.items():
            bench = Bench(dataset, backbone, self.teachers[backbone], *images, self.recipe)
            group = (dataset, backbone)
            yield bench, [c.sparsifier for c in self.left if (c.dataset, c.backbone) == group]
