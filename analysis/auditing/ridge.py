"""The dense linear rival: every y_l as a ridge regression on the MLP inputs x_0..x_l.

    y^_l = b_l + sum over s <= l of V[s->l] x_s

or, per layer, on x_l alone: each MLP's best linear map, y^_l = b_l + V[l->l] x_l. It is returned as
a CLT whose features are the entries of x themselves (identity encoders, as many features as
d_model, all of them active), so every study of a CLT runs on it unchanged. Where its scores equal a
CLT's, those scores say where y_l can be read linearly, and sparsity added nothing. The comparison
is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, token_rows
from vit_clt.hooks.activations import capture
from vit_clt.progress import Progress
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.sparsifiers import AbsTopK

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT_EVERY = 5
"""One image in this many is held out to choose the penalties."""


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression of all targets, and what it was fitted on."""

    clt: CrossLayerTranscoder
    """The regression as a CLT."""
    penalties: list[float]
    """The penalty of every target, as a share of the inputs' mean variance."""
    r2: list[float]
    """R^2 of every target on the held-out images, around the mean of all their rows."""
    n_images: int
    """Number of images the coefficients were fitted on."""
    n_held_out: int
    """Number of held-out images, which chose the penalties."""
    tokens: TokenKind
    """Kind of rows fitted."""


@torch.no_grad()
def ridge_transcoder(
    vit: HookedViT,
    images: ImageData | Tensor | Iterable[Any],
    *,
    tokens: TokenKind = "all",
    cross_layer: bool = True,
    penalties: Sequence[float | int] = PENALTIES,
    progress: bool = False,
) -> RidgeFit:
    """Fit a ridge regression of every y_l on x_0..x_l, on the teacher trajectory.

    Every fifth image is held out of the fit and chooses the penalty of each target. Sums are in
    float64. The sums of either part take n_layers^2 d_model^2 numbers for x with x and as many for
    x with y, and solving takes up to two such matrices more: 4 GB at ViT-B. Per layer they take
    n_layers d_model^2.

    Args:
        vit: the teacher.
        images: images to fit on; they should not be the images to be studied.
        tokens: kind of rows fitted.
        cross_layer: y_l is fitted on x_0..x_l; otherwise on x_l alone.
        penalties: penalties to choose from, as shares of the inputs' mean variance.
        progress: show a progress bar.

    Raises:
        InputError: there are fewer than 5 images, or a penalty is not positive.
    """
    data = as_image_data(images)
    rows = token_rows(tokens, vit.cfg.rows)
    if len(data) < HELD_OUT_EVERY:
        raise InputError("images", f"has {len(data)} rows; expected at least {HELD_OUT_EVERY}.")
    if not penalties or min(penalties) <= 0:
        raise InputError("penalties", f"is {list(penalties)}; expected numbers above 0.")
    n, d = vit.cfg.n_layers, vit.cfg.d_model
    device = next(vit.parameters()).device
    # layers whose inputs are fitted on side by side
    groups = [range(n)] if cross_layer else [range(l, l + 1) for l in range(n)]
    fitted, held_out = (
        [_Moments.empty(len(group), d, device) for group in groups] for _ in range(2)
    )
    seen = 0
    n_batches = -(-len(data) // data.batch_size)
    for batch, _ in Progress(data, "ridge", n_batches, disable=not progress):
        activations = capture(vit, batch.to(device))
        x, y = activations.x[:, :, rows].double(), activations.y[:, :, rows].double()
        is_held_out = (torch.arange(seen, seen + len(batch)) % HELD_OUT_EVERY == 0).to(device)
        seen += len(batch)
        for parts, mask in ((fitted, ~is_held_out), (held_out, is_held_out)):
            for group, part in zip(groups, parts, strict=True):
                layers = slice(group.start, group.stop)
                part.add(x[layers, mask], y[layers, mask])

    config = CLTConfig(n, d, d, AbsTopK(k=d), cross_layer=cross_layer)
    clt = CrossLayerTranscoder(config, backend="dense").to(device)
    for s in range(n):
        clt.W_enc[s].copy_(torch.eye(d))
    best_penalties, best_r2 = [], []
    for group, part, judge in zip(groups, fitted, held_out, strict=True):
        for i, l in enumerate(group):
            width = (i + 1) * d
            best = None
            for penalty in penalties:
                weights, bias = part.solve(i, width, float(penalty))
                r2 = judge.r2(i, width, weights, bias)
                if best is None or r2 > best[0]:
                    best = (r2, float(penalty), weights, bias)
            assert best is not None
            r2, penalty, weights, bias = best
            for s in group[: i + 1]:
                at = (s - group.start) * d
                clt.W_dec[s][l - s].copy_(weights[at : at + d])
            clt.b_dec[l].copy_(bias)
            best_penalties.append(penalty)
            best_r2.append(r2)
    n_held_out = -(-len(data) // HELD_OUT_EVERY)
    return RidgeFit(clt, best_penalties, best_r2, len(data) - n_held_out, n_held_out, tokens)


@dataclass
class _Moments:
    """Sums over rows of x (layers side by side), of y, and of their products."""

    xx: Float[Tensor, "in in"]
    xy: Float[Tensor, "layer in d_model"]
    yy: Float[Tensor, " layer"]
    x: Float[Tensor, " in"]
    y: Float[Tensor, "layer d_model"]
    n_rows: int = 0

    @classmethod
    def empty(cls, n: int, d: int, device: torch.device) -> _Moments:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return cls(zeros(n * d, n * d), zeros(n, n * d, d), zeros(n), zeros(n * d), zeros(n, d))

    def add(
        self,
        x: Float[Tensor, "layer image row d_model"],
        y: Float[Tensor, "layer image row d_model"],
    ) -> None:
        flat = rearrange(x, "layer image row d -> (image row) (layer d)")
        targets = rearrange(y, "layer image row d -> layer (image row) d")
        self.xx += flat.T @ flat
        self.xy += flat.T @ targets
        self.yy += targets.square().sum((1, 2))
        self.x += flat.sum(0)
        self.y += targets.sum(1)
        self.n_rows += len(flat)

    def solve(self, l: int, width: int, penalty: float) -> tuple[Tensor, Tensor]:
        """Coefficients "in d_model" and bias of target l; the bias is not penalised."""
        x, y = self.x[:width] / self.n_rows, self.y[l] / self.n_rows
        gram = self.xx[:width, :width] / self.n_rows - x.outer(x)
        gram.diagonal().add_(penalty * gram.diagonal().mean())
        covariance = self.xy[l, :width] / self.n_rows - x.outer(y)
        weights = torch.cholesky_solve(covariance, torch.linalg.cholesky(gram))
        return weights, y - x @ weights

    def r2(self, l: int, width: int, weights: Tensor, bias: Tensor) -> float:
        """1 - sum ||y - y^||^2 / sum ||y - mean y||^2 on these rows, from the sums alone."""
        y = self.y[l]
        linear = (weights * self.xy[l, :width]).sum() + bias @ y
        squared = (weights * (self.xx[:width, :width] @ weights)).sum()
        squared += 2 * (self.x[:width] @ weights) @ bias + self.n_rows * bias @ bias
        error = self.yy[l] - 2 * linear + squared
        return 1 - float(error / (self.yy[l] - y @ y / self.n_rows))
