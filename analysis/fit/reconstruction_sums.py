"""Two passes over images: what reconstruction is measured with, streamed, sums in float64.

The first pass is the ViT's alone: means of y and the norms that mark its largest rows. The second
measures around those means, for any number of CLTs on the same activations. Kept are sums, a few
numbers an image, and 1 % of the rows' norms; never rows of width d_model. `fit_frame` makes the
table of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from vit_clt.analysis.contributions.parts import NEGLIGIBLE
from vit_clt.analysis.stats.intervals import bootstrap_means, intervals
from vit_clt.analysis.stats.means import PositionMean
from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import Activations, capture
from vit_clt.transcoder.model import CrossLayerTranscoder

UNTYPICAL = 100
"""One row in this many, those with the largest ||y||, is left out of the typical rows."""


@dataclass(frozen=True)
class OutputSurvey:
    """What every y_l looks like, without any CLT."""

    rows: Mapping[TokenKind, slice]
    mean: Float[Tensor, "layer token d_model"]
    """Over images, per position."""
    power: Float[Tensor, "layer token"]
    """Sum of ||y||^2 over images."""
    limit: Mapping[TokenKind, Float[Tensor, " layer"]]
    """Largest ||y||^2 of a typical row."""
    n_images: int

    def pooled_mean(self, tokens: TokenKind) -> Float[Tensor, "layer d_model"]:
        """Mean over images and the positions of a token kind."""
        return self.mean[:, self.rows[tokens]].mean(1)

    def n_rows(self, tokens: TokenKind) -> int:
        """Rows of a token kind, over all images."""
        return self.n_images * self.mean[0, self.rows[tokens]].shape[0]


@torch.no_grad()
def survey_outputs(
    vit: HookedViT, data: ImageData, rows: Mapping[TokenKind, slice], *, progress: bool = False
) -> OutputSurvey:
    """The first pass: means and norms of y at every layer."""
    n, t = vit.cfg.n_layers, vit.cfg.n_tokens
    device = next(vit.parameters()).device
    zeros = partial(torch.zeros, dtype=torch.float64, device=device)
    mean, power = PositionMean(), zeros(n, t)
    largest = {tokens: zeros(n, 0) for tokens in rows}
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in tqdm(data, "MLP outputs", n_batches, disable=not progress):
        y = capture(vit, images.to(device)).y
        mean.add(y)
        norms = torch.stack([_norms(layer) for layer in y])
        power += norms.sum(1)
        for tokens, chosen in rows.items():
            seen = torch.cat([largest[tokens], norms[:, :, chosen].flatten(1)], 1)
            n_rows = len(data) * norms[0, 0, chosen].numel()
            # one more than are left out: the largest that stays
            largest[tokens] = seen.topk(min(n_rows // UNTYPICAL + 1, seen.shape[1])).values
    return OutputSurvey(
        rows=rows,
        mean=mean.mean(),
        power=power,
        limit={tokens: values[:, -1] for tokens, values in largest.items()},
        n_images=len(data),
    )


class OutputSums:
    """The second pass's sums that every CLT shares, of one token kind."""

    def __init__(self, survey: OutputSurvey, tokens: TokenKind):
        self.rows = survey.rows[tokens]
        self.mean = survey.pooled_mean(tokens)
        self._position_mean = survey.mean[:, self.rows]
        self._limit = survey.limit[tokens]
        zeros = partial(torch.zeros, dtype=torch.float64, device=self.mean.device)
        n, d = self.mean.shape
        self.spread: list[Tensor] = []  # ||y - mean||^2, "layer image" a batch
        self.mean_cosine = zeros(n)  # cos(y, mean): what the mean alone achieves
        self.spread_position = zeros(n)
        self.typical_rows = zeros(n)
        self.typical_power = zeros(n)  # ||y||^2
        self.typical_spread = zeros(n)  # ||y - mean||^2
        self.typical_sum = zeros(n, d)  # of y - mean

    def add(self, y: Float[Tensor, "layer image token d_model"]) -> Bool[Tensor, "layer image row"]:
        """Count a batch; returns which of its rows are typical."""
        spreads, typical = [], []
        for l, layer in enumerate(y):
            chosen = layer[:, self.rows].double()
            norms = _norms(chosen)
            kept = norms <= self._limit[l]
            away = chosen - self.mean[l]
            square = _norms(away)
            spreads.append(square.sum(1))
            typical.append(kept)
            self.mean_cosine[l] += torch.cosine_similarity(chosen, self.mean[l], dim=-1).sum()
            self.spread_position[l] += (chosen - self._position_mean[l]).square().sum()
            self.typical_rows[l] += kept.sum()
            self.typical_power[l] += norms[kept].sum()
            self.typical_spread[l] += square[kept].sum()
            self.typical_sum[l] += away[kept].sum(0)
        self.spread.append(torch.stack(spreads))
        return torch.stack(typical)

    def typical_variation(self) -> Float[Tensor, " layer"]:
        """Sum of ||y - mean||^2 over the typical rows, around their own mean."""
        shift = self.typical_sum.square().sum(-1) / self.typical_rows
        return self.typical_spread - shift


class FitSums:
    """The second pass's sums of one CLT."""

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
        # y^ and its own layer's term c = c_{l->l}
        self.power = zeros(n, t)
        self.together = zeros(n, t)  # <c, y^>
        self.total = zeros(n, t, d)
        self.own_total = zeros(n, t, d)

    def add(
        self,
        found: Activations,
        typical: Mapping[TokenKind, Bool[Tensor, "layer image _"]],
    ) -> None:
        """Count a batch of images."""
        codes = self.clt.encode(found.x)
        decoded = self.clt.decode(codes)
        self.active += codes.l0().sum(1)
        errors, cosines = [], []
        for l, y in enumerate(found.y):
            y_hat = decoded[l].double()
            own = self.clt.contributions({l: codes[l]}, target=l)[0].double()
            errors.append(_norms(y.double() - y_hat))
            cosines.append(torch.cosine_similarity(y.double(), y_hat, dim=-1))
            self.power[l] += _norms(y_hat).sum(0)
            self.together[l] += (own * y_hat).sum((0, 2))
            self.total[l] += y_hat.sum(0)
            self.own_total[l] += own.sum(0)
        error, cosine = torch.stack(errors), torch.stack(cosines)
        for tokens, chosen in self._rows.items():
            self.fired[tokens] += codes.at_rows(chosen).fired()
            self.error[tokens].append(error[:, :, chosen].sum(2))
            self.cosine[tokens].append(cosine[:, :, chosen].mean(2))
            kept = error[:, :, chosen] * typical[tokens]
            self.typical_error[tokens] += kept.sum((1, 2))


def _norms(rows: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row"]:
    return rows.double().square().sum(-1)


def fit_frame(
    survey: OutputSurvey,
    outputs: dict[TokenKind, OutputSums],
    fit: FitSums,
    order: list[int],
    seed: int,
) -> pd.DataFrame:
    """The numbers of one CLT, a row per layer and token kind.

    Args:
        survey: of the first pass.
        outputs: of the second pass, per token kind.
        fit: of the second pass, of the CLT.
        order: of the images, which only their pixels and the seed may decide.
        seed: of the bootstrap.
    """
    n, d = survey.mean.shape[0], survey.mean.shape[2]
    found = []
    for tokens, sums in outputs.items():
        n_rows, power = survey.n_rows(tokens), survey.power[:, sums.rows].sum(1)
        # "layer image"
        error, spread, cosine = (
            torch.cat(parts, 1)[:, order]
            for parts in (fit.error[tokens], sums.spread, fit.cosine[tokens])
        )
        sse, variation = error.sum(1), spread.sum(1)
        r2 = _r2(sse, variation, power)
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
            "r2_position": _r2(sse, sums.spread_position, power),
            "r2_typical": _r2(
                fit.typical_error[tokens], sums.typical_variation(), sums.typical_power
            ),
            "fvu": 1 - r2,
            "l0": fit.active[:, sums.rows].sum(1) / n_rows,
            "dead": (fit.fired[tokens] == 0).double().mean(1),
            "cross_layer": _cross_layer(fit, sums.rows, survey.n_images),
        }
        frame = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
        frame.insert(0, "layer", range(n))
        frame.insert(1, "tokens", tokens)
        found.append(frame.assign(n_images=survey.n_images))
    return pd.concat(found, ignore_index=True)


def _r2(
    sse: Float[Tensor, " layer"], variation: Float[Tensor, " layer"], power: Float[Tensor, " layer"]
) -> Float[Tensor, " layer"]:
    # a variation this small is rounding: there is nothing to explain
    return torch.where(variation > NEGLIGIBLE * power, 1 - sse / variation, torch.nan)


def _cross_layer(fit: FitSums, rows: slice, n_images: int) -> Float[Tensor, " layer"]:
    """1 - E<c - mean c, y^ - mean y^> / E||y^ - mean y^||^2, c = c_{l->l}, means per position."""
    total, own_total = fit.total[:, rows], fit.own_total[:, rows]
    power = fit.power[:, rows].sum(1)
    spread = power - total.square().sum((1, 2)) / n_images
    together = fit.together[:, rows].sum(1) - (own_total * total).sum((1, 2)) / n_images
    return torch.where(spread > NEGLIGIBLE * power, 1 - together / spread, torch.nan)


def _ends(
    samples: Float[Tensor, "layer resample"], defined: Bool[Tensor, " layer"]
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    low, high = (torch.full(defined.shape, torch.nan, dtype=samples.dtype) for _ in range(2))
    for end, known in zip((low, high), intervals(samples[defined].T.numpy()), strict=True):
        end[defined] = torch.from_numpy(known)
    return low, high
