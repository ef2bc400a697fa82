"""The vectors that linear probes read, one for each image and place of the stream or an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, RESID_MID, RESID_POST, RESID_PRE
from vit_clt.hooks.rows import TokenRows, region_rows
from vit_clt.progress import Progress

Stage = Literal["resid_pre", "resid_mid", "resid_post", "x", "y"]
STAGE_POINTS: dict[Stage, str] = {
    "resid_pre": RESID_PRE,
    "resid_mid": RESID_MID,
    "resid_post": RESID_POST,
    "x": HOOK_IN,
    "y": HOOK_OUT,
}
ProbedRows = Literal["cls", "patch"]
PROBED_ROWS: tuple[ProbedRows, ...] = ("cls", "patch")


class Place(NamedTuple):
    """The activation that a probe reads: kind of rows, stage within the block, and layer."""

    tokens: ProbedRows
    stage: Stage
    layer: int


@torch.no_grad()
def probe_rows(
    vit: HookedViT, data: ImageData, layers: Sequence[int], *, progress: bool = False
) -> tuple[dict[Place, Float[np.ndarray, "image column"]], np.ndarray]:
    """The vectors of every place, in float32, and the labels, from one pass over the images.

    Of CLS rows a vector is row 0, with d_model columns. Of patch rows it is the mean over the left
    half of the patch grid beside the mean over its right half (a middle column of patches belongs
    to the left). Only layer 0 has the place resid_pre, the start of the stream: the start of any
    other block is the end of the one below.

    Raises:
        InputError: images have another size, or activations are NaN or infinite.
    """
    stages = [(stage, l) for l in layers for stage in _stages(l)]
    kinds = _kinds(vit)
    vectors: dict[Place, np.ndarray] = {}
    labels: list[Tensor] = []
    device = next(vit.parameters()).device
    names = {(stage, l): STAGE_POINTS[stage].format(l=l) for stage, l in stages}
    done = 0
    with Progress(total=len(data), desc=data.name, unit=" images", disable=not progress) as bar:
        for images, batch_labels in data:
            cache = vit.clean_cache(images.to(device), list(names.values()))
            batch = slice(done, done + len(images))
            for (stage, l), name in names.items():
                for tokens in kinds:
                    rows = _pooled(cache[name], vit.cfg.rows, tokens)
                    if not rows.isfinite().all():
                        raise InputError(
                            f"{name} holds NaN or infinite values; expected finite activations."
                        )
                    place = Place(tokens, stage, l)
                    if place not in vectors:
                        vectors[place] = np.empty((len(data), rows.shape[1]), np.float32)
                    vectors[place][batch] = rows.cpu().numpy()
            labels.append(batch_labels)
            done += len(images)
            bar.update(len(images))
    return vectors, torch.cat(labels).numpy()


def n_columns(vit: HookedViT, layer: int) -> int:
    """Columns of the vectors of all places of a layer."""
    of_kinds = {"cls": 1, "patch": 2 if vit.cfg.rows.grid[1] > 1 else 1}
    return len(_stages(layer)) * vit.cfg.d_model * sum(of_kinds[kind] for kind in _kinds(vit))


def _stages(layer: int) -> list[Stage]:
    return [stage for stage in STAGE_POINTS if stage != "resid_pre" or layer == 0]


def _kinds(vit: HookedViT) -> list[ProbedRows]:
    return [kind for kind in PROBED_ROWS if kind in vit.cfg.rows.kinds]


def _pooled(
    values: Float[Tensor, "image token d_model"], rows: TokenRows, tokens: ProbedRows
) -> Float[Tensor, "image column"]:
    if tokens == "cls":
        return values[:, 0]
    halves = [region_rows("left_half", rows)]
    if rows.grid[1] > 1:
        halves.append(region_rows("right_half", rows))
    return torch.cat([values[:, half].double().mean(1).float() for half in halves], 1)
