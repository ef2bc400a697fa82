"""Two passes over images: what reconstruction is measured with, streamed, sums in float64.

The first pass is the ViT's alone: means of y and the norms that mark its largest rows. The second
measures around those means, for any number of CLTs on the same activations. Kept are sums, a few
numbers an image, and 1 % of the rows' norms; never rows of width d_model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

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
    n, t, d = vit.cfg.n_layers, vit.cfg.n_tokens, vit.cfg.d_model
    device = next(vit.parameters()).device
    zeros = partial(torch.zeros, dtype=torch.float64, device=device)
    total, power = zeros(n, t, d), zeros(n, t)
    largest = {tokens: zeros(n, 0) for tokens in rows}
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in tqdm(data, "MLP outputs", n_batches, disable=not progress):
        y = capture(vit, images.to(device)).y
        total += y.sum(1, dtype=torch.float64)
        norms = torch.stack([_norms(layer) for layer in y])
        power += norms.sum(1)
        for tokens, chosen in rows.items():
            seen = torch.cat([largest[tokens], norms[:, :, chosen].flatten(1)], 1)
            n_rows = len(data) * norms[0, 0, chosen].numel()
            # one more than are left out: the largest that stays
            largest[tokens] = seen.topk(min(n_rows // UNTYPICAL + 1, seen.shape[1])).values
    return OutputSurvey(
        rows=rows,
        mean=total / len(data),
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
