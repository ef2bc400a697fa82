"""The float64 sums behind reconstruction, from two passes over the images.

The first pass needs no CLT: it takes the means of y, and the norms that mark its largest rows. The
second measures errors and variation around those means, for any number of CLTs on the same
activations. Memory holds sums, a few numbers an image, and the norms of 1 % of the rows, but no
rows of width d_model. `fit_frame` makes a table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_clt.analysis.contributions.parts import NEGLIGIBLE
from vit_clt.analysis.fit.variation import Variation, r_squared
from vit_clt.analysis.stats.intervals import bootstrap_means, intervals
from vit_clt.analysis.stats.means import PositionMean
from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import Activations, capture
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder

UNTYPICAL = 100
"""One row in this many, those with the largest ||y||, is left out of the typical rows."""


@dataclass(frozen=True)
class OutputSurvey:
    """Means and norms of the MLP outputs y_l over images, which need no CLT."""

    rows: Mapping[TokenKind, slice]
    """Token rows of each token kind."""
    mean: Float[Tensor, "layer token d_model"]
    """Mean of y over images, at each position."""
    power: Float[Tensor, "layer token"]
    """Sum of ||y||^2 over images."""
    limit: Mapping[TokenKind, Float[Tensor, " layer"]]
    """Largest ||y||^2 of a typical row, by token kind."""
    n_images: int

    def pooled_mean(self, tokens: TokenKind) -> Float[Tensor, "layer d_model"]:
        """Mean of y over images and over the positions of a token kind."""
        return self.mean[:, self.rows[tokens]].mean(1)

    def n_rows(self, tokens: TokenKind) -> int:
        """Number of rows of a token kind, over all images."""
        return self.n_images * self.mean[0, self.rows[tokens]].shape[0]


@torch.no_grad()
def survey_outputs(
    vit: HookedViT,
    data: ImageData,
    rows: Mapping[TokenKind, slice],
    *,
    captured: Callable[[HookedViT, Tensor], Activations] = capture,
    progress: bool = False,
) -> OutputSurvey:
    """The first pass over the images: means of y, its norms, and the limits of typical rows.

    Args:
        vit: the teacher.
        data: the images.
        rows: token rows of each token kind.
        captured: gives the activations of images; by default those of clean passes.
        progress: show a progress bar.
    """
    n, t = vit.cfg.n_layers, vit.cfg.n_tokens
    device = next(vit.parameters()).device
    zeros = partial(torch.zeros, dtype=torch.float64, device=device)
    mean, power = PositionMean(), zeros(n, t)
    largest = {tokens: zeros(n, 0) for tokens in rows}
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in Progress(data, "MLP outputs", n_batches, disable=not progress):
        y = captured(vit, images.to(device)).y
        mean.add(y)
        norms = torch.stack([_norms(layer) for layer in y])
        power += norms.sum(1)
        for tokens, kind_rows in rows.items():
            seen = torch.cat([largest[tokens], norms[:, :, kind_rows].flatten(1)], 1)
            n_rows = len(data) * norms[0, 0, kind_rows].numel()
            # One more is kept than is left out: the smallest kept is the largest typical norm.
            largest[tokens] = seen.topk(min(n_rows // UNTYPICAL + 1, seen.shape[1])).values
    return OutputSurvey(
        rows=rows,
        mean=mean.mean(),
        power=power,
        limit={tokens: values[:, -1] for tokens, values in largest.items()},
        n_images=len(data),
    )


class OutputSums:
    """Sums of the second pass over the rows of one token kind that do not depend on a CLT."""

    def __init__(self, survey: OutputSurvey, tokens: TokenKind):
        self.rows = survey.rows[tokens]
        self.mean = survey.pooled_mean(tokens)
        self._position_mean = survey.mean[:, self.rows]
        self._limit = survey.limit[tokens]
        zeros = partial(torch.zeros, dtype=torch.float64, device=self.mean.device)
        n = len(self.mean)
        self.spread: list[Tensor] = []  # ||y - mean||^2, "layer image" a batch
        self.mean_cosine = zeros(n)  # cos(y, mean): what the mean alone achieves
        self.spread_position = zeros(n)
        self.typical = Variation(self.mean)

    def add(self, y: Float[Tensor, "layer image token d_model"]) -> Bool[Tensor, "layer image row"]:
        """Add a batch; returns which of its rows are typical."""
        spreads, typical = [], []
        for l, layer in enumerate(y):
            rows = layer[:, self.rows].double()
            norms = _norms(rows)
            is_typical = norms <= self._limit[l]
            centred = rows - self.mean[l]
            square = _norms(centred)
            spreads.append(square.sum(1))
            typical.append(is_typical)
            self.mean_cosine[l] += torch.cosine_similarity(rows, self.mean[l], dim=-1).sum()
            self.spread_position[l] += (rows - self._position_mean[l]).square().sum()
            self.typical.add(l, rows[is_typical])
        self.spread.append(torch.stack(spreads))
        return torch.stack(typical)


class FitSums:
    """Sums of the second pass for one CLT."""

    def __init__(self, clt: CrossLayerTranscoder, survey: OutputSurvey):
        self.clt = clt
        self._rows = survey.rows
        n, t, d = survey.mean.shape
        zeros = partial(torch.zeros, dtype=torch.float64, device=survey.mean.device)
        # "layer image" a batch
        self.error: dict[TokenKind, list[Tensor]] = {tokens: [] for tokens in survey.rows}
        self.cosine: dict[TokenKind, list[Tensor]] = {tokens: [] for tokens in survey.rows}
        self.typical_error = {tokens: zeros(n) for tokens in survey.rows}
        self.active = zeros(n, t)
        # token rows on which each feature is active
        counts = torch.zeros(n, clt.config.n_features, dtype=torch.long, device=survey.mean.device)
        self.fired = {tokens: counts.clone() for tokens in survey.rows}
        # sums over images of y^ and of what is read at the layer itself, c = c_{l->l} + the skip's
        self.power = zeros(n, t)
        self.own_product = zeros(n, t)  # <c, y^>
        self.total = zeros(n, t, d)
        self.own_total = zeros(n, t, d)

    def add(
        self,
        activations: Activations,
        typical: Mapping[TokenKind, Bool[Tensor, "layer image _"]],
    ) -> None:
        """Add a batch of images; `typical` says by token kind which rows are typical."""
        codes = self.clt.encode(activations.x)
        decoded = self.clt.decode(codes, x=activations.x)
        self.active += codes.l0().sum(1)
        errors, cosines = [], []
        for l, y in enumerate(activations.y):
            y_hat = decoded[l].double()
            own_term = self.clt.contributions({l: codes[l]}, target=l)[0].double()
            if self.clt.config.skip:
                own_term += self.clt.skip_term(activations.x[l], l).double()
            errors.append(_norms(y.double() - y_hat))
            cosines.append(torch.cosine_similarity(y.double(), y_hat, dim=-1))
            self.power[l] += _norms(y_hat).sum(0)
            self.own_product[l] += (own_term * y_hat).sum((0, 2))
            self.total[l] += y_hat.sum(0)
            self.own_total[l] += own_term.sum(0)
        error, cosine = torch.stack(errors), torch.stack(cosines)
        for tokens, rows in self._rows.items():
            self.fired[tokens] += codes.at_rows(rows).fired()
            self.error[tokens].append(error[:, :, rows].sum(2))
            self.cosine[tokens].append(cosine[:, :, rows].mean(2))
            typical_error = error[:, :, rows] * typical[tokens]
            self.typical_error[tokens] += typical_error.sum((1, 2))


def _norms(rows: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row"]:
    return rows.double().square().sum(-1)


def fit_frame(
    survey: OutputSurvey,
    outputs: dict[TokenKind, OutputSums],
    fit: FitSums,
    order: list[int],
    seed: int,
) -> pd.DataFrame:
    """The `Reconstruction.frame` of one CLT: a row per layer and token kind.

    Args:
        survey: result of the first pass.
        outputs: sums of the second pass by token kind.
        fit: sums of the second pass for the CLT.
        order: order of the images for the bootstrap, which depends only on pixels and seed.
        seed: seed of the bootstrap.
    """
    n, d = survey.mean.shape[0], survey.mean.shape[2]
    frames = []
    for tokens, sums in outputs.items():
        n_rows, power = survey.n_rows(tokens), survey.power[:, sums.rows].sum(1)
        # "layer image"
        error, spread, cosine = (
            torch.cat(parts, 1)[:, order]
            for parts in (fit.error[tokens], sums.spread, fit.cosine[tokens])
        )
        sse, variation = error.sum(1), spread.sum(1)
        r2 = r_squared(sse, variation, power)
        means = bootstrap_means(torch.cat([error, spread, cosine]).T.cpu().numpy(), seed)
        errors, spreads, cosines = (torch.from_numpy(m).T for m in np.split(means, 3, axis=1))
        r2_low, r2_high = _ends(1 - errors / spreads, r2.isfinite().cpu() & (len(order) > 1))
        cosine_low, cosine_high = _ends(cosines, torch.full((n,), len(order) > 1))
        columns = {
            "cosine": cosine.mean(1),
            "cosine_low": cosine_low,
            "cosine_high": cosine_high,
            "cosine_floor": sums.mean_cosine / n_rows,
            "mse": sse / n_rows / d,
            "mse_floor": variation / n_rows / d,
            "r2": r2,
            "r2_low": r2_low,
            "r2_high": r2_high,
            "r2_position": r_squared(sse, sums.spread_position, power),
            "r2_typical": r_squared(
                fit.typical_error[tokens],
                sums.typical.around_own_mean(),
                sums.typical.power.squeeze(1),
            ),
            "fvu": 1 - r2,
            "l0": fit.active[:, sums.rows].sum(1) / n_rows,
            "dead": (fit.fired[tokens] == 0).double().mean(1),
            "cross_layer": _cross_layer(fit, sums.rows, survey.n_images),
        }
        frame = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
        frame.insert(0, "layer", range(n))
        frame.insert(1, "tokens", tokens)
        frames.append(frame.assign(n_images=survey.n_images))
    return pd.concat(frames, ignore_index=True)


def _cross_layer(fit: FitSums, rows: slice, n_images: int) -> Float[Tensor, " layer"]:
    """1 - E<c - mean c, y^ - mean y^> / E||y^ - mean y^||^2, c = c_{l->l} + a skip's term.

    Means are per position.
    """
    total, own_total = fit.total[:, rows], fit.own_total[:, rows]
    power = fit.power[:, rows].sum(1)
    spread = power - total.square().sum((1, 2)) / n_images
    own_product = fit.own_product[:, rows].sum(1)
    covariation = own_product - (own_total * total).sum((1, 2)) / n_images
    return torch.where(spread > NEGLIGIBLE * power, 1 - covariation / spread, torch.nan)


def _ends(
    samples: Float[Tensor, "layer resample"], defined: Bool[Tensor, " layer"]
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    low, high = (torch.full(defined.shape, torch.nan, dtype=samples.dtype) for _ in range(2))
    for end, values in zip((low, high), intervals(samples[defined].T.numpy()), strict=True):
        end[defined] = torch.from_numpy(values)
    return low, high
