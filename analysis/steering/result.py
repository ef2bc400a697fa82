"""What the studies of steering state alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.stats.names import Texts
from vit_clt.analysis.steering.wording import COMPARED, rows_name
from vit_clt.hooks import Rows


@dataclass(frozen=True, kw_only=True)
class SteeringStudy(Study):
    """Measures of the model with features turned up or down."""

    name = "steering"

    frame: pd.DataFrame
    """Every number (`to_frame`)."""
    tokens: Rows
    """Token rows that are steered."""
    readout: str
    data: str
    split: str | None
    subject: Subject
    l0: float
    """Active features per row and layer of the unsteered model (teacher trajectory): over the
    steered layers and all images of a curve, or all layers and the ranking half of a search."""
    n: int
    """Number of images measured."""
    seed: int
    names: Texts = field(default_factory=dict)
    """Names of features, which titles and tables show."""

    def to_frame(self) -> pd.DataFrame:
        """Every number; accuracies and probabilities are fractions, losses and KL nats."""
        return self.frame.copy()

    def facts_with(self, **more: Any) -> Facts:
        """Images, rows and further facts; everything downstream of an edit is recomputed."""
        return Facts(
            self.data,
            self.n,
            self.tokens if isinstance(self.tokens, str) else rows_name(self.tokens),
            "stream",
            self.l0,
            split=self.split,
            seed=self.seed,
            more={
                **more,
                "readout": self.readout,
                "model": self.subject.model,
                "clt": self.subject.clt,
                **COMPARED,
            },
        )
