"""The second pass over the images: variation of y, errors and activity by group of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.fit.variation import Variation, r_squared
from vit_clt.analysis.high_norm.rule import N_GROUPS
from vit_clt.analysis.high_norm.survey import RowSurvey, activations_of, split_images
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class CodeSums:
    """What a CLT does on the rows of each group."""

    error: Float[Tensor, "layer image group"]
    """Sums of ||y - y^||^2."""
    active: Float[Tensor, "layer group"]
    """Numbers of active features, summed over rows."""
    fired: Int[Tensor, "layer group feature"]
    """Rows on which each feature is active."""


class RowSums:
    """Sums of the second pass, by layer and group of rows.

    Args:
        survey: result of the first pass.
        clt: the CLT; None for sums of y alone.
    """

    codes: CodeSums | None = None

    def __init__(self, survey: RowSurvey, clt: CrossLayerTranscoder | None):
        n, n_images, _ = survey.groups.shape
        self.survey = survey
        self.clt = clt
        self.variation = Variation(survey.mean, N_GROUPS)
        zeros = survey.mean.new_zeros
        self.spread: Float[Tensor, "layer image group"] = zeros(n, n_images, N_GROUPS)
        """Sums of ||y - mean||^2, around the mean of all rows."""
        if clt is not None:
            fired = zeros(n, N_GROUPS, clt.config.n_features, dtype=torch.long)
            self.codes = CodeSums(zeros(n, n_images, N_GROUPS), zeros(n, N_GROUPS), fired)

    def add(
        self,
        first: int,
        x: Sequence[Float[Tensor, "part token d_model"]],
        y: Sequence[Float[Tensor, "part token d_model"]],
    ) -> None:
        """Add images; `first` is the number of the first of them."""
        n_images = len(y[0])
        groups = self.survey.groups[:, first : first + n_images].to(y[0].device).long()
        if self.clt is not None:
            self._add_codes(first, x, y, groups)
        for l, layer in enumerate(y):
            for group in range(N_GROUPS):
                inside = groups[l] == group
                square = self.variation.add(l, layer[inside], group)
                images = inside.nonzero()[:, 0]
                self.spread[l, first : first + n_images, group].index_add_(0, images, square)

    def _add_codes(
        self,
        first: int,
        x: Sequence[Tensor],
        y: Sequence[Tensor],
        groups: Int[Tensor, "layer part token"],
    ) -> None:
        assert self.clt is not None
        assert self.codes is not None
        stacked = torch.stack(list(x))
        codes = self.clt.encode(stacked)
        decoded = self.clt.decode(codes, x=stacked)
        n_images = groups.shape[1]
        for l, layer in enumerate(y):
            error = (layer.double() - decoded[l].double()).square().sum(-1)
            by_group = [(error * (groups[l] == group)).sum(1) for group in range(N_GROUPS)]
            self.codes.error[l, first : first + n_images] += torch.stack(by_group, 1)
            at = groups[l].flatten()
            self.codes.active[l].index_add_(0, at, codes[l].l0().flatten().double())
            entries = codes[l].active().entries()
            places = at[entries.rows] * codes.n_features + entries.indices
            fired = torch.bincount(places, minlength=N_GROUPS * codes.n_features)
            self.codes.fired[l] += fired.view(N_GROUPS, -1)

    def n_rows(self, groups: Sequence[int]) -> Float[Tensor, " layer"]:
        """Number of rows in these groups together."""
        return self.variation.n_rows[:, list(groups)].sum(1)

    def r2(self, groups: Sequence[int]) -> Float[Tensor, " layer"]:
        """R^2 of the CLT on the rows of these groups together, around their own mean.

        NaN where y does not vary on them, or there are none.
        """
        assert self.codes is not None
        at = list(groups)
        variation = self.variation.around_own_mean(at)
        power = self.variation.power[:, at].sum(1)
        return r_squared(self.codes.error[:, :, at].sum((1, 2)), variation, power)


@torch.no_grad()
def sum_rows(
    vit: HookedViT,
    data: ImageData,
    survey: RowSurvey,
    clt: CrossLayerTranscoder | None,
    *,
    progress: bool = False,
) -> RowSums:
    """Run the ViT over the images a second time, and sum by group of rows.

    Args:
        vit: the ViT.
        data: the images of `survey`.
        survey: result of the first pass.
        clt: the CLT; None for sums of y alone.
        progress: show a progress bar.
    """
    sums = RowSums(survey, clt)
    first = 0
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in Progress(data, "high-norm rows", n_batches, disable=not progress):
        for part in split_images(vit, images):
            found = activations_of(vit, part, ["x", "y"] if clt is not None else ["y"])
            sums.add(first, found.get("x", []), found["y"])
            first += len(part)
    return sums
