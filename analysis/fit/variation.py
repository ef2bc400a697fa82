"""How far rows lie from their own mean, in sums that batches add to; and R^2 around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.contributions.parts import NEGLIGIBLE


class Variation:
    """Sums over rows y, by layer and group of rows, around a reference that is known beforehand:

        sum ||y - own mean||^2  =  sum ||y - reference||^2  -  ||sum (y - reference)||^2 / n

    The nearer the reference is to the mean, the less is lost to rounding; all is float64.

    Args:
        reference: one vector a layer.
        n_groups: number of groups.
    """

    def __init__(self, reference: Float[Tensor, "layer d_model"], n_groups: int = 1):
        self.reference = reference
        shape = (len(reference), n_groups)
        self.n_rows = reference.new_zeros(shape)
        self.power = reference.new_zeros(shape)  # ||y||^2
        self.spread = reference.new_zeros(shape)  # ||y - reference||^2
        self.total = reference.new_zeros(*shape, reference.shape[1])  # of y - reference

    def add(
        self, layer: int, y: Float[Tensor, "row d_model"], group: int = 0
    ) -> Float[Tensor, " row"]:
        """Add rows of one layer and group; returns the ||y - reference||^2 of each."""
        y = y.double()
        centred = y - self.reference[layer]
        square = centred.square().sum(-1)
        at = (layer, group)
        self.n_rows[at] += len(y)
        self.power[at] += y.square().sum(-1).sum()
        self.spread[at] += square.sum()
        self.total[at] += centred.sum(0)
        return square

    def around_own_mean(self, groups: Sequence[int] = (0,)) -> Float[Tensor, " layer"]:
        """Sum of ||y - mean||^2 over the rows of these groups together, around their own mean."""
        at = list(groups)
        total = self.total[:, at].sum(1)
        return self.spread[:, at].sum(1) - total.square().sum(-1) / self.n_rows[:, at].sum(1)


def r_squared(
    sse: Float[Tensor, " layer"], variation: Float[Tensor, " layer"], power: Float[Tensor, " layer"]
) -> Float[Tensor, " layer"]:
    """1 - sse / variation; NaN where the variation is rounding beside the power sum ||y||^2.

    Such rows do not vary, and leave nothing to explain.
    """
    return torch.where(variation > NEGLIGIBLE * power, 1 - sse / variation, torch.nan)
