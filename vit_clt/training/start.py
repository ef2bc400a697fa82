"""How a CLT starts: the scales of normalised space, and weights and biases that fit the teacher.

Training sees x' = x * scale_x and y' = y * scale_y, whose token rows have a mean norm of
sqrt(d_model). Their means are far from zero in every ViT, and those of CLS rows far from those of
all others. With biases at zero these constants decide which features win a place among the top k,
and those that never win never learn. `start_` takes the constants out; all of it stays linear in
the codes, in the parameters that any CLT has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT
from vit_clt.hooks.rows import TokenRows
from vit_clt.training.batches import GroupActivations

MOST_BALANCE = 1000
"""The most by which `Moments.cls_weights` multiplies the weight of a CLS row."""


@dataclass(frozen=True)
class Moments:
    """What a run measures of its activations before the first step, per layer, raw units."""

    scale_x: Float[Tensor, " layer"]
    """Factor that brings the mean norm of x to sqrt(d_model)."""
    scale_y: Float[Tensor, " layer"]
    """Factor that brings the mean norm of y to sqrt(d_model)."""
    mean_x: Float[Tensor, "layer d_model"]
    """Mean of x over rows that are no CLS rows."""
    mean_y: Float[Tensor, "layer d_model"]
    """Mean of y over rows that are no CLS rows."""
    cls_x: Float[Tensor, "layer d_model"]
    """Mean of x over CLS rows; `mean_x` where there are none."""
    cls_y: Float[Tensor, "layer d_model"]
    """Mean of y over CLS rows; `mean_y` where there are none."""
    spread_y: Float[Tensor, " layer"]
    """Mean squared distance of y from `mean_y`, over rows that are no CLS rows."""
    cls_spread_y: Float[Tensor, " layer"]
    """Mean squared distance of y from `cls_y`, over CLS rows; `spread_y` where there are none."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Moments:
        """`change` of each tensor."""
        return Moments(*(change(getattr(self, part.name)) for part in fields(self)))

    def cls_weights(self, weight: float | int, *, balance: bool) -> Float[Tensor, " layer"]:
        """The weight of a CLS row in the loss of each layer, where other rows weigh 1.

        `weight`; with `balance` times spread_y / cls_spread_y, but at most `MOST_BALANCE` times:
        y of CLS rows that hardly varies has nothing to explain.
        """
        weights = torch.full_like(self.spread_y, float(weight))
        if balance:
            ratio = self.spread_y / self.cls_spread_y
            weights *= ratio.nan_to_num(1.0).clamp(max=MOST_BALANCE)
        return weights


@torch.no_grad()
def moments(groups: Iterable[GroupActivations], rows: TokenRows) -> Moments:
    """The moments of the activations of these groups of images.

    Args:
        groups: activations of images.
        rows: the token rows of the model.

    Raises:
        InputError: x or y of a layer is zero everywhere, or no image can be read.
    """
    n_cls, sums, n_images = int(rows.has_cls), None, 0
    for group in groups:
        # unreadable images are zeros, which add nothing
        both = torch.stack([group.x, group.y]).double()
        # x or y, layer, token: summed over images
        norms, totals = both.norm(dim=-1).sum((2, 3)), both.sum(2)
        squares = both[1].square().sum((1, 3))
        part = (
            norms,
            *(totals[:, :, :n_cls].sum(2), totals[:, :, n_cls:].sum(2)),
            *(squares[:, :n_cls].sum(1), squares[:, n_cls:].sum(1)),
        )
        sums = part if sums is None else tuple(a + b for a, b in zip(sums, part, strict=True))
        n_images += int(group.readable.sum())
    if sums is None or n_images == 0:
        raise InputError("none of the images can be read; expected at least one.")
    norms, of_cls, of_others, cls_squares, squares = sums
    for values, point in zip(norms, (HOOK_IN, HOOK_OUT), strict=True):
        if (values == 0).any():
            silent = point.format(l=int((values == 0).nonzero()[0]))
            raise InputError(f"{silent} is zero on every token; expected activations that vary.")
    scales = sqrt(of_others.shape[-1]) * n_images * rows.n_tokens / norms
    n_others = n_images * (rows.n_tokens - n_cls)
    others = of_others / n_others
    spread = (squares / n_others - others[1].square().sum(-1)).clamp(min=0)
    cls, cls_spread = others, spread
    if n_cls:
        cls = of_cls / n_images
        cls_spread = (cls_squares / n_images - cls[1].square().sum(-1)).clamp(min=0)
    tensors = (*scales, *others, *cls, spread, cls_spread)
    return Moments(*(value.float() for value in tensors))


@torch.no_grad()
def start_(tensors: dict[str, Tensor], measured: Moments, *, signed: bool) -> None:
    """Bring the tensors of a new CLT to the centred start, in place, in normalised space.

    `unit_encoders_`, `centre_` and, where there are CLS rows, `cls_feature_`.

    Args:
        tensors: parameters of the CLT by name, whole.
        measured: the moments of the images that the run starts from.
        signed: whether codes may be negative.
    """
    unit_encoders_(tensors)
    centre_(tensors, measured)
    if not torch.equal(measured.cls_x, measured.mean_x):
        cls_feature_(tensors, measured, signed=signed)


@torch.no_grad()
def unit_encoders_(tensors: dict[str, Tensor]) -> None:
    """Bring rows of W_enc to norm 1; W_dec shrinks by as much as they grow, so that y^ keeps size.

    AdamW moves every weight by about lr a step, whatever its size: rows of the drawn norm,
    sqrt(d_model / (3 n_features)), are overturned in a few steps, and whatever wins then stays.
    """
    for s in range(len(tensors["b_enc"])):
        norms = tensors[f"W_enc.{s}"].norm(dim=1, keepdim=True)
        tensors[f"W_enc.{s}"].div_(norms)
        tensors[f"W_dec.{s}"].mul_(norms)


@torch.no_grad()
def centre_(tensors: dict[str, Tensor], measured: Moments) -> None:
    """Start with b_enc = -W_enc mean(x') and b_dec = mean(y'), over rows that are no CLS rows."""
    for s, mean in enumerate(measured.mean_x * measured.scale_x[:, None]):
        tensors["b_enc"][s] = -(tensors[f"W_enc.{s}"] @ mean)
    tensors["b_dec"].copy_(measured.mean_y * measured.scale_y[:, None])


@torch.no_grad()
def cls_feature_(tensors: dict[str, Tensor], measured: Moments, *, signed: bool) -> None:
    """Make feature 0 of each layer one that fires on CLS rows and writes what sets their y apart.

    It reads x' along the difference of the two means. On a CLS row at their mean its
    pre-activation is sqrt(d_model), on another row at theirs it is minus that, or 0 for codes that
    may be negative. It writes the difference of the means of y' to its own layer.
    """
    size = sqrt(measured.mean_x.shape[1])
    for s, scale in enumerate(measured.scale_x):
        other, cls = measured.mean_x[s] * scale, measured.cls_x[s] * scale
        reads = (cls - other) * (size / (cls - other).square().sum())
        bias = -(reads @ other)
        tensors[f"W_enc.{s}"][0] = reads if signed else 2 * reads
        tensors["b_enc"][s, 0] = bias if signed else 2 * bias - size
        tensors[f"W_dec.{s}"][:, 0] = 0
        apart = (measured.cls_y[s] - measured.mean_y[s]) * measured.scale_y[s]
        tensors[f"W_dec.{s}"][0, 0] = apart / size
