"""High-norm patch rows of a ViT, and what they do to a CLT."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vit_clt.analysis.high_norm.marked import marked_images
from vit_clt.analysis.high_norm.result import HighNorm
from vit_clt.analysis.high_norm.rule import HIGH, HighNormRule
from vit_clt.analysis.high_norm.sums import sum_rows
from vit_clt.analysis.high_norm.survey import survey_rows
from vit_clt.analysis.high_norm.tables import feature_counts, features_frame, kinds_frame
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.hooks.rows import TokenRows
from vit_clt.transcoder.model import CrossLayerTranscoder


@torch.no_grad()
def high_norm_rows(
    vit: HookedViT,
    clt: CrossLayerTranscoder | None,
    images: ImageData | Tensor | Iterable[Any],
    *,
    rule: HighNormRule | None = None,
    clt_name: str = "CLT",
    seed: int = 0,
    progress: bool = False,
) -> HighNorm:
    """Which patch rows have outlying norms at each layer, and what do they do to a CLT?

    The ViT runs over the images twice: for the norms of all rows, which say what outlies, and for
    the sums by kind of rows. Codes come from the clean pass. Twelve bytes a row and layer are kept.

    Args:
        vit: the ViT, of any family, with or without a class token and registers.
        clt: its CLT; None measures the rows alone.
        images: ImageData, a tensor "image 3 height width", or batches.
        rule: which patch rows are high-norm; by default 6 deviations and twice the median.
        clt_name: name of the CLT in captions.
        seed: seed of the random rows that are the floor, and of the bootstrap over images.
        progress: show progress bars.

    Raises:
        InputError: the CLT does not fit the model, there are no images, or an activation is NaN or
            infinite.
    """
    if clt is not None:
        check_fits(vit, clt)
    data = as_image_data(images)
    check_prepared(vit, data)
    rule = rule or HighNormRule()
    survey = survey_rows(vit, data, rule, seed=seed, progress=progress)
    sums = sum_rows(vit, data, survey, clt, progress=progress)
    rows = vit.cfg.rows
    features = features_frame(sums) if clt is not None else None
    high = survey.groups[:, :, rows.first_patch :] == HIGH
    return HighNorm(
        frame=kinds_frame(sums, _kinds(rows), seed),
        limits=survey.limit.numpy(),
        medians=survey.median.numpy(),
        image_share=high.double().mean(1).unflatten(1, rows.grid).numpy(),
        features=features,
        counts=feature_counts(features, sums.codes)
        if features is not None and sums.codes
        else None,
        marked=marked_images(vit, data, survey),
        rule=rule,
        model=vit.cfg.model,
        clt=clt_name if clt is not None else None,
        data=data.name,
        split=data.split,
        n=len(data),
        seed=seed,
    )


def _kinds(rows: TokenRows) -> list[str]:
    """The kinds of `KINDS` that differ from one another in this model."""
    kinds = ["cls"] * rows.has_cls + ["register"] * (rows.n_registers > 0)
    kinds += ["ordinary", "high_norm", "random", "patch", "patch_without_random"]
    if rows.first_patch:
        kinds += ["all", "all_without_high_norm", "all_without_random"]
    return kinds
