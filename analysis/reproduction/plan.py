"""The cost of the paper's evaluation, estimated before its first cell.

Memory and disk come from the formulas of `vit_clt.training.cost`. Time is estimated from a trial on
this machine: a training step with a sixteenth of the features and of k, scaled up (its cost is
linear in both), and one pass of a randomly initialised backbone. The time of decoding images and
encoding text is not included.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import pandas as pd
import torch

from vit_clt.analysis.reproduction.cells import KINDS, Cell, Recipe
from vit_clt.data.images import TensorImages
from vit_clt.forecast.wording import duration
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.seeding import seeded_globally
from vit_clt.training.cost import Estimate, estimate
from vit_clt.training.trainer import resolved
from vit_clt.training.trial import seconds_per_step
from vit_clt.transcoder.model import CrossLayerTranscoder

IMAGES = {"cifar100": (50_000, 10_000), "imagenet100": (126_689, 5_000), "coco": (117_266, 4_952)}
"""Numbers of training and held-out images that the data sets state; for COCO images with a box."""
_SHRINK = 16
_TRIAL_IMAGES = 8


@dataclass(frozen=True)
class CellCost:
    """The estimated cost of one cell."""

    cell: Cell
    n_parameters: int
    n_train: int
    n_held_out: int
    steps: int
    needs: Estimate
    """Memory and disk of its training, in bytes."""
    train_seconds: float
    """Time of its training."""
    measure_seconds: float
    """Time of measuring it on the held-out images."""

    @property
    def result_bytes(self) -> int:
        """Bytes on disk that remain when the cell is finished."""
        return self.needs.disk["result"]


def plan(
    to_run: Sequence[Cell],
    recipe: Recipe,
    teachers: Mapping[str, HookedViT],
    n_images: Mapping[str, tuple[int, int]],
) -> list[CellCost]:
    """The estimated cost of each cell.

    Args:
        to_run: the cells.
        recipe: how they are trained and measured.
        teachers: teacher by backbone; its weights do not matter.
        n_images: number of training and held-out images by data set, before the recipe's limit.
    """
    pass_seconds = lru_cache(maxsize=None)(lambda b: _pass_seconds(teachers[b]))
    # backbones of one width and depth have the same step
    step_seconds = lru_cache(maxsize=None)(
        lambda b, sparsifier: _step_seconds(teachers[b], recipe, sparsifier)
    )
    backbone_of_shape: dict[tuple[int, int], str] = {}
    costs = []
    for cell in to_run:
        vit = teachers[cell.backbone]
        n_train, n_held_out = (
            n if recipe.limit is None else min(n, recipe.limit) for n in n_images[cell.dataset]
        )
        config, settings = recipe.config(vit, cell.sparsifier), recipe.settings(cell.sparsifier)
        device = vit.device
        settings = resolved(settings, config, device)
        images = n_train - settings.held_out(n_train)
        steps = settings.n_steps(n_train, vit.cfg.n_tokens)
        needs = estimate(
            config,
            settings,
            n_images=n_train,
            n_tokens=vit.cfg.n_tokens,
            teacher_parameters=sum(p.numel() for p in vit.parameters()),
            device=device,
        )
        shape = vit.cfg.n_layers, vit.cfg.d_model
        same_step = backbone_of_shape.setdefault(shape, cell.backbone)
        per_image, per_step = pass_seconds(cell.backbone), step_seconds(same_step, cell.sparsifier)
        teacher = per_image * images * settings.n_epochs(n_train, vit.cfg.n_tokens)
        # a step is about three forward passes of the CLT
        clt_per_image = per_step / 3 / settings.batch_size * vit.cfg.n_tokens
        teacher_passes, clt_passes = _evaluation_passes(vit.cfg.n_layers, recipe)
        costs.append(
            CellCost(
                cell,
                config.n_parameters(),
                n_train,
                n_held_out,
                steps,
                needs,
                teacher + per_step * steps,
                n_held_out * (teacher_passes * per_image + clt_passes * clt_per_image),
            )
        )
    return costs


def total_needs(costs: Sequence[CellCost]) -> Estimate:
    """Memory and disk of all cells, run one after the other.

    That is the largest memory of any cell, and the disk of all results and of the largest
    checkpoints of one cell.
    """
    largest = max(costs, key=lambda cost: sum(cost.needs.memory.values()))
    disk = {
        "checkpoints": max(cost.needs.disk["checkpoints"] for cost in costs),
        "result": sum(cost.result_bytes for cost in costs),
        "activation store": 0,
    }
    return Estimate(largest.needs.memory, disk)


def plan_table(costs: Sequence[CellCost]) -> pd.DataFrame:
    """The costs as text, one row per cell."""
    return pd.DataFrame(
        {
            "cell": cost.cell.name,
            "images": f"{cost.n_train:,} / {cost.n_held_out:,}",
            "parameters": f"{cost.n_parameters / 1e6:,.1f} M",
            "memory, GB": f"{sum(cost.needs.memory.values()) / 1e9:.1f}",
            "disk, GB": f"{cost.result_bytes / 1e9:.2f}",
            "steps": f"{cost.steps:,}",
            "training": duration(cost.train_seconds),
            "measuring": duration(cost.measure_seconds),
        }
        for cost in costs
    )


def _evaluation_passes(n_layers: int, recipe: Recipe) -> tuple[float, float]:
    """About how many passes of the teacher and of the CLT it takes to measure one image.

    A range s..L-1 costs the share of layers from s on; each of its two floors costs as much.
    """
    share = (n_layers + 1) / 2
    replaced = len(KINDS) * len(recipe.inputs) * share
    # reconstruction, means, prefix, scores; and per range: means, original and three versions
    passes = 4 + 2 * len(KINDS) * share + replaced + 5 * len(recipe.ranges)
    return passes, replaced + len(recipe.ranges) + 2


def _pass_seconds(vit: HookedViT) -> float:
    """Seconds per image of a forward pass with captured activations."""
    images = torch.zeros(_TRIAL_IMAGES, 3, *vit.cfg.image_size, device=vit.device)
    work = partial(capture, vit, images)
    work()  # the first one warms up
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    began = time.perf_counter()
    work()
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return (time.perf_counter() - began) / _TRIAL_IMAGES


def _step_seconds(vit: HookedViT, recipe: Recipe, sparsifier: str) -> float:
    """Seconds of a training step without the teacher's pass, scaled up from a smaller CLT."""
    full = recipe.config(vit, sparsifier)
    factor = max(1, min(_SHRINK, full.n_features // 256))
    small = replace(recipe, n_features=full.n_features // factor, k=max(1, recipe.k // factor))
    config = small.config(vit, sparsifier)
    settings = resolved(recipe.settings(sparsifier), full, vit.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_TRIAL_IMAGES, 3, *vit.cfg.image_size, generator=generator)
    with seeded_globally(settings.seed):
        clt = CrossLayerTranscoder(config, backend=settings.backend).to(vit.device)
    return factor * seconds_per_step(vit, clt, TensorImages(images), settings, cache=True)
