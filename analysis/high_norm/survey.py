"""The first pass over the images: norms of every row, and the groups that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_clt.analysis.high_norm.rule import HighNormRule, row_groups
from vit_clt.analysis.stats.means import PositionMean
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, RESID_POST
from vit_clt.progress import Progress

NORMS = {"stream": RESID_POST, "x": HOOK_IN, "y": HOOK_OUT}
"""The activations whose norms are taken, by the name they have in tables."""
_ROWS_PER_PASS = 2**13
"""Token rows that go through the ViT together, so that images of many patches fit into memory."""


@dataclass(frozen=True)
class RowSurvey:
    """Norms and groups of all rows, and the mean of y, which need no CLT."""

    norms: dict[str, Float[Tensor, "layer image token"]]
    """Norms of the residual stream after each block ("stream"), of x_l ("x") and of y_l ("y")."""
    groups: UInt8[Tensor, "layer image token"]
    """Group of every row, as `rule` numbers them."""
    median: Float[Tensor, " layer"]
    """Median norm of the stream on patch rows."""
    limit: Float[Tensor, " layer"]
    """Norm of the stream above which a patch row is high-norm."""
    mean: Float[Tensor, "layer d_model"]
    """Mean of y_l over all rows of all images, in float64, on the device of the ViT."""


@torch.no_grad()
def survey_rows(
    vit: HookedViT, data: ImageData, rule: HighNormRule, *, seed: int, progress: bool = False
) -> RowSurvey:
    """Run the ViT over the images, and mark rows by the rule.

    Args:
        vit: the ViT.
        data: the images.
        rule: which patch rows are high-norm.
        seed: seed of the random rows.
        progress: show a progress bar.

    Raises:
        InputError: an activation is NaN or infinite.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in NORMS}
    mean = PositionMean()
    for images, _ in Progress(data, "norms", _n_batches(data), disable=not progress):
        for part in split_images(vit, images):
            for name, values in activations_of(vit, part, list(NORMS)).items():
                taken = torch.stack([v.double().norm(dim=-1).float() for v in values])
                parts[name].append(taken.cpu())
                if name == "y":
                    mean.add(torch.stack(values))
    norms = {name: torch.cat(each, 1) for name, each in parts.items()}
    for name, taken in norms.items():
        if not taken.isfinite().all():
            raise InputError(f"{name} holds NaN or infinite values; expected finite activations.")
    rows = vit.cfg.rows
    median, limit = rule.limits(norms["stream"][:, :, rows.first_patch :])
    return RowSurvey(
        norms=norms,
        groups=row_groups(norms["stream"], limit, rows, seed),
        median=median,
        limit=limit,
        mean=mean.mean().mean(1),
    )


def split_images(
    vit: HookedViT, images: Float[Tensor, "batch 3 height width"]
) -> Iterator[Float[Tensor, "part 3 height width"]]:
    """A batch in parts whose activations fit into memory, on the device of the ViT."""
    yield from images.to(vit.device).split(max(1, _ROWS_PER_PASS // vit.cfg.n_tokens))


def activations_of(
    vit: HookedViT, images: Float[Tensor, "part 3 height width"], names: list[str]
) -> dict[str, list[Float[Tensor, "part token d_model"]]]:
    """Activations of a clean pass by layer, for names of `NORMS`."""
    points = {name: [NORMS[name].format(l=l) for l in range(vit.cfg.n_layers)] for name in names}
    cache = vit.clean_cache(images, [point for each in points.values() for point in each])
    return {name: [cache[point] for point in each] for name, each in points.items()}


def _n_batches(data: ImageData) -> int:
    return -(-len(data) // data.batch_size)
