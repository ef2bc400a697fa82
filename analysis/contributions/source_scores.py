"""What every score of source layers has in common, C(s->l) and E(s->l) alike.

Heatmaps, orders of sources, keep-sets and agreement with causal effects take any of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.reporting.study import Study
from vit_clt.analysis.stats.intervals import Interval, intervals
from vit_clt.choices import Reduce, ScoreKind, TokenKind
from vit_clt.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class SourceScores(Study):
    """A number for every target and source, of one kind, on one set of images and token rows."""

    matrix: Float[Tensor, "target source"]
    """The score of s at l, NaN above the diagonal (s > l)."""
    kind: ScoreKind
    reduce: Reduce
    """How ratios are averaged."""
    tokens: TokenKind
    """Rows of the targets that are scored."""
    n_images: int
    data: str
    """Name of the data, and the class or image of it that was scored."""
    l0: float
    """Active features a token row and layer, over the scored rows."""
    seed: int
    """Seed of the bootstrap."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Kind and letter, as "centred C"."""

    @property
    @abstractmethod
    def how(self) -> str:
        """How it was measured, for a figure's panel; empty where the kind says all."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Kind, how it was measured, rows and images, for captions."""

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """What the columns of `values` belong to: the sources, and what else has a score."""

    @property
    @abstractmethod
    def values(self) -> Float[Tensor, "target column"]:
        """`matrix`, and what else has a score beside it."""

    @property
    @abstractmethod
    def draws(self) -> Float[np.ndarray, "draw target column"]:
        """`values` on bootstrap draws of the images."""

    @property
    @abstractmethod
    def on_output(self) -> Float[np.ndarray, " source"] | None:
        """What stands for the output in a comparison of sources; None where nothing does."""

    @property
    @abstractmethod
    def variation(self) -> Sequence[Tensor]:
        """What only scores of the same teacher and of the same images in the same order share."""

    @property
    def output_row(self) -> Sequence[Interval] | None:
        """The scores of the sources at the output itself, in nats; None where there are none."""
        return None

    @abstractmethod
    def metrics(self, prefix: str = "") -> list[Metric]:
        """The numbers of metrics.json; their names begin with `prefix`."""

    @property
    def low(self) -> Float[Tensor, "target column"]:
        """Lower ends of the 95 % intervals of `values`."""
        return self._ends[0]

    @property
    def high(self) -> Float[Tensor, "target column"]:
        """Upper ends of the 95 % intervals of `values`."""
        return self._ends[1]

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        low, high = intervals(self.draws)
        return torch.from_numpy(low), torch.from_numpy(high)
