"""Which patch rows are high-norm, and the groups of rows that follow from it.

Darcet et al. (arXiv 2309.16588) found patch rows with norms far above all others in the last layers
of large ViTs. Here ||r_l|| is the norm of the residual stream that leaves block l
(`hook_resid_post`), so that a row which block l itself makes large counts at l. A patch row is
high-norm at layer l if its norm is above both

    multiple * median_l    and    median_l + deviations * 1.4826 * MAD_l,

median_l and MAD_l (the median of | ||r_l|| - median_l |) being over all patch rows of all images.
1.4826 MAD estimates the standard deviation of normal numbers. The first bound keeps rows out that
stand out of a narrow distribution only; the second, those of a wide one. CLS rows and registers
are kinds of their own: they take no part in the medians and are never high-norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.hooks.rows import TokenRows

CLS, REGISTER, ORDINARY, RANDOM, HIGH = range(5)
"""Groups of rows; each row is in one group at a layer. RANDOM are ordinary patch rows drawn at
random, as many as there are in HIGH; ORDINARY are the others that are not high-norm."""
N_GROUPS = 5
KINDS: Mapping[str, tuple[int, ...]] = {
    "cls": (CLS,),
    "register": (REGISTER,),
    "ordinary": (ORDINARY, RANDOM),
    "high_norm": (HIGH,),
    "random": (RANDOM,),
    "patch": (ORDINARY, RANDOM, HIGH),
    "patch_without_random": (ORDINARY, HIGH),
    "all": (CLS, REGISTER, ORDINARY, RANDOM, HIGH),
    "all_without_high_norm": (CLS, REGISTER, ORDINARY, RANDOM),
    "all_without_random": (CLS, REGISTER, ORDINARY, HIGH),
}
"""Kinds of rows that are measured, as the groups that make them up. "ordinary" are also the patch
rows without the high-norm ones."""


@dataclass(frozen=True)
class HighNormRule:
    """The two numbers of the rule at the top of the module.

    Raises:
        InputError: a number is not finite, or out of its range.
    """

    deviations: float = 6.0
    """Robust standard deviations above the median; at least 0."""
    multiple: float = 2.0
    """Multiple of the median; at least 1."""

    def __post_init__(self) -> None:
        for name, least in (("deviations", 0), ("multiple", 1)):
            value = getattr(self, name)
            if not isfinite(value) or value < least:
                raise InputError(name, f"is {value:g}; expected a number of at least {least}.")

    def limits(
        self, norms: Float[Tensor, "layer image patch"]
    ) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
        """The medians of the norms of patch rows, and the norms above which a row is high-norm."""
        flat = norms.double().flatten(1).numpy()
        median = np.median(flat, 1)
        deviation = np.median(np.abs(flat - median[:, None]), 1)
        limit = np.maximum(self.multiple * median, median + self.deviations * 1.4826 * deviation)
        return torch.from_numpy(median), torch.from_numpy(limit)

    def text(self) -> str:
        """The rule as a phrase."""
        return (
            f"norm of the residual stream after the block above {self.multiple:g} times the median "
            f"of patch rows and above the median + {self.deviations:g} x 1.4826 MAD"
        )


def row_groups(
    norms: Float[Tensor, "layer image token"],
    limits: Float[Tensor, " layer"],
    rows: TokenRows,
    seed: int,
) -> UInt8[Tensor, "layer image token"]:
    """The group of every row at every layer.

    Args:
        norms: of the residual stream, on the CPU.
        limits: by layer, as of `HighNormRule.limits`.
        rows: the token rows of the model.
        seed: of the draw of the random rows, which are drawn anew at every layer.
    """
    groups = torch.full(norms.shape, REGISTER, dtype=torch.uint8)
    groups[:, :, : int(rows.has_cls)] = CLS
    patches = groups[:, :, rows.first_patch :]
    patches[:] = ORDINARY
    patches[norms[:, :, rows.first_patch :].double() > limits[:, None, None]] = HIGH
    generator = torch.Generator().manual_seed(seed)
    for layer in groups:
        ordinary = (layer.flatten() == ORDINARY).nonzero().flatten()
        n_high = int((layer == HIGH).sum())
        drawn = torch.randperm(len(ordinary), generator=generator)[:n_high]
        layer.view(-1)[ordinary[drawn]] = RANDOM
    return groups
