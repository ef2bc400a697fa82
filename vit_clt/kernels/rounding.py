"""What a product with rows rounded to bfloat16 says of the float32 one: bounds by row.

With x and w rounded to bfloat16, x~ and w~, let s = x~ w~ + b, and a = x w + b as some float32
program sums it, in whatever order. By Cauchy-Schwarz, maxima being over the features,

    |s - a| <= screen,  screen = ||x - x~|| max||w~|| + ||x~|| max||w - w~|| + 2 delta
    delta = (d + 20) 2^-24 (||x|| max||w|| + max|b|)

`delta` bounds what rounding does to a sum of d products and a bias in any order (d + 1 roundings of
at most 2^-24 of all sizes together). The 20 is more than what rounding adds in the bounds and in
comparisons with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Bool, Float
from torch import Tensor

# elements rounded while they are cached
_CACHED = 2**16
# far from overflow, in float32 and in bfloat16
_LARGEST = 2.0**120
# more than what underflow takes from norms, also where denormal numbers are flushed to zero, and
# from products of rows
_UNDERFLOW = 2.0**-50, 2.0**-90


@dataclass(frozen=True)
class Rounded:
    """Rows in bfloat16, with upper bounds of their norms and of the norms of what was lost."""

    rows: BFloat16[Tensor, "row d_model"]
    norms: Float[Tensor, " row"]
    lost: Float[Tensor, " row"]

    @classmethod
    def of(cls, table: Float[Tensor, "row d_model"]) -> Rounded:
        """The rows of a float32 table, rounded to the nearest."""
        n_rows, width = table.shape
        rows = torch.empty(n_rows, width, dtype=torch.bfloat16)
        norms, lost = table.new_empty(2, n_rows)
        size = min(n_rows, max(1, _CACHED // width))
        buffer = table.new_empty(size, width)
        for start in range(0, n_rows, size):
            here = slice(start, start + size)
            exact = table[here]
            difference = buffer[: len(exact)].copy_(rows[here].copy_(exact)).sub_(exact)
            torch.linalg.vector_norm(exact, dim=1, out=norms[here])
            torch.linalg.vector_norm(difference, dim=1, out=lost[here])
        slack = 1 + width * 2.0**-20
        return cls(rows, *(v.mul_(slack).add_(_UNDERFLOW[0]) for v in (norms, lost)))


@dataclass(frozen=True)
class Bounds:
    """`screen` and `delta` of each row; 0 in rows that have no `use`, of which they say nothing."""

    screen: Float[Tensor, " row"]
    delta: Float[Tensor, " row"]
    use: Bool[Tensor, " row"]

    @classmethod
    def of(cls, x: Rounded, weight: Rounded, bias: Float[Tensor, " feature"]) -> Bounds:
        """Bounds of x w + b for rows x and all rows w; of no use near overflow or with a nan."""
        norms, lost = x.norms + x.lost, weight.lost.amax()
        largest = weight.norms.amax() + lost
        scale = norms * largest + bias.abs().amax() + _UNDERFLOW[1]
        delta = (x.rows.shape[1] + 20) * 2.0**-24 * scale
        screen = x.lost * largest + norms * lost + 2 * delta
        use = scale < _LARGEST
        return cls(screen.where(use, 0.0), delta.where(use, 0.0), use)

    def __getitem__(self, rows: slice) -> Bounds:
        return Bounds(self.screen[rows], self.delta[rows], self.use[rows])
