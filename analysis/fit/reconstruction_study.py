"""How well y^ stands for y: cosine, MSE, R^2, L0, dead features, per layer and token kind.

Over the N rows of a token kind at one layer, on the teacher trajectory:

    cosine       mean of cos(y, y^)
    mse          mean of ||y - y^||^2 / d, in squared raw units
    r2           1 - sum ||y - y^||^2 / sum ||y - mean||^2, the mean over those N rows
    r2_position  the same around the mean over images at each position
    r2_typical   r2 of the rows that stay when the 1 % with the largest ||y|| (rounded down) is left
                 out, around the mean of those that stay; outlier tokens steer both sums of r2
    fvu          1 - r2
    cross_layer  1 - centred C(l->l): share of y^ that earlier layers' features decode
    l0, dead     active features a row; share of features silent on every one of those rows

The floors are what the mean alone achieves: r2 0, `cosine_floor`, `mse_floor`. Names and the plain
forms are the paper's; means, positions, typical rows and the cross-layer share are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from vit_clt.analysis.contributions.parts import NEGLIGIBLE
from vit_clt.analysis.fit.reconstruction_sums import (
    FitSums,
    OutputSums,
    OutputSurvey,
    survey_outputs,
)
from vit_clt.analysis.stats.intervals import bootstrap_means, intervals
from vit_clt.choices import TokenKind
from vit_clt.data.fingerprints import image_keys
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, token_rows
from vit_clt.hooks.activations import capture
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class Reconstruction:
    """Per layer and token kind; `frame` has one row for each."""

    frame: pd.DataFrame
    """Columns: layer, tokens, cosine, cosine_low, cosine_high, cosine_floor, mse, mse_floor, r2,
    r2_low, r2_high, r2_position, r2_typical, fvu, l0, dead, cross_layer, n_images, as in the
    module's table; NaN where y, or for cross_layer y^, does not vary. Intervals are 95 % bootstrap
    over images, around the mean of all images; NaN for a single one."""
    data: str
    seed: int
    """Of the bootstrap."""

    def mean(self, tokens: TokenKind, column: str = "r2") -> float:
        """Mean of a column over layers."""
        return float(self.frame.loc[self.frame["tokens"] == tokens, column].mean())

    def metrics(self, prefix: str = "") -> list[Metric]:
        """R^2, cosine and MSE of every layer and token kind, with what the mean alone achieves."""
        found = []
        for r in self.frame.itertuples():
            place, n = f"{r.tokens}_layer_{r.layer}", r.n_images
            values = (
                ("r2", r.r2, "fraction", n, r.r2_low, r.r2_high, 0.0),
                ("r2_position", r.r2_position, "fraction", n, None, None, 0.0),
                ("r2_typical", r.r2_typical, "fraction", n, None, None, 0.0),
                ("cosine", r.cosine, "fraction", n, r.cosine_low, r.cosine_high, r.cosine_floor),
                ("mse", r.mse, "raw^2", n, None, None, r.mse_floor),
                ("cross_layer", r.cross_layer, "fraction", n),
                ("l0", r.l0, "count", n),
            )
            found += [Metric(f"{prefix}{name}_{place}", *rest) for name, *rest in values]
            if r.tokens == "all":
                found.append(Metric(f"{prefix}dead_layer_{r.layer}", r.dead, "fraction", n))
        return found


def reconstruction(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor | Iterable[Any],
    *,
    seed: int = 0,
    progress: bool = False,
) -> Reconstruction:
    """Measure y^ against y, streaming; see `reconstructions`."""
    return reconstructions(vit, [clt], images, seed=seed, progress=progress)[0]


@torch.no_grad()
def reconstructions(
    vit: HookedViT,
    clts: Sequence[CrossLayerTranscoder],
    images: ImageData | Tensor | Iterable[Any],
    *,
    seed: int = 0,
    progress: bool = False,
) -> list[Reconstruction]:
    """Measure several CLTs of one teacher on the same activations.

    The ViT runs over the images twice, first for the means of y, however many CLTs there are.
    Neither the order of the images nor their batches matter: the bootstrap goes by their pixels.

    Args:
        vit: the teacher.
        clts: its transcoders.
        images: ImageData, a tensor "image 3 height width", or batches.
        seed: of the bootstrap; the same images are drawn for every CLT.
        progress: show progress bars.

    Raises:
        InputError: a CLT does not fit the model, or there are no CLTs or no images.
    """
    if not clts:
        raise InputError("clts", "is empty; expected at least one CLT.")
    for clt in clts:
        check_fits(vit, clt)
    data = as_image_data(images)
    check_prepared(vit, data)
    rows = {tokens: token_rows(tokens, vit.cfg.has_cls) for tokens in get_args(TokenKind)}
    survey = survey_outputs(vit, data, rows, progress=progress)
    outputs = {tokens: OutputSums(survey, tokens) for tokens in rows}
    fits = [FitSums(clt, survey) for clt in clts]
    keys: list[bytes] = []
    n_batches = -(-len(data) // data.batch_size)
    for batch, labels in tqdm(data, "reconstruct", n_batches, disable=not progress):
        keys += image_keys(batch, labels, seed)
        found = capture(vit, batch.to(survey.mean.device))
        typical = {tokens: sums.add(found.y) for tokens, sums in outputs.items()}
        for fit in fits:
            fit.add(found, typical)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [
        Reconstruction(_frame(survey, outputs, fit, order, seed), data.name, seed) for fit in fits
    ]


def _frame(
    survey: OutputSurvey,
    outputs: dict[TokenKind, OutputSums],
    fit: FitSums,
    order: list[int],
    seed: int,
) -> pd.DataFrame:
    n, d = survey.mean.shape[0], survey.mean.shape[2]
    found = []
    for tokens, sums in outputs.items():
        n_rows, power = survey.n_rows(tokens), survey.power[:, sums.rows].sum(1)
        # "layer image", in an order that only pixels and the seed decide
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
