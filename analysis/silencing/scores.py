"""Effect scores E(s->l) and E(s->output): what do all features of a source layer do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.analysis.reporting.study import Facts
from vit_clt.analysis.silencing.effects import READING_UNITS, SilencingEffects
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class EffectScores(SourceScores):
    """Effects of silencing all features of each source layer, on every y_l and on the output."""

    name = "effects"

    effects: SilencingEffects
    """The effects image by image; what is silenced is layer 0, 1, ..., L - 1."""

    @property
    def title(self) -> str:
        """ "total E" or "direct E"."""
        return f"{self.effects.path} E"

    @property
    def how(self) -> str:
        """Path, fill, silenced rows and order."""
        return self.effects.how()

    @property
    def label(self) -> str:
        """How it was measured, rows and images, for captions."""
        return f"effect ({self.how}), {self.tokens} rows, {self.data}"

    @property
    def columns(self) -> list[str]:
        """The sources."""
        return list(map(str, range(len(self.matrix))))

    @property
    def values(self) -> Float[Tensor, "target column"]:
        """E(s->l), the matrix itself."""
        return self.matrix

    @property
    def draws(self) -> Float[np.ndarray, "draw target column"]:
        """E(s->l) on bootstrap draws of the images."""
        return self.effects.draws

    @property
    def on_output(self) -> Float[np.ndarray, " source"] | None:
        """E(s->output), the mean rise of the loss in nats; None without a classifier."""
        loss = self.effects.on_output.get("loss")
        return None if loss is None else loss.mean(0)

    @property
    def variation(self) -> Sequence[Tensor]:
        """How y of each image varies."""
        return [torch.from_numpy(self.effects.on_targets.spread)]

    @property
    def output_row(self) -> Sequence[Interval] | None:
        """E(s->output) with intervals; None without a classifier."""
        if self.on_output is None:
            return None
        return [self.effects.output("loss", s) for s in range(len(self.matrix))]

    def facts(self) -> Facts:
        """The facts of the effects."""
        return self.effects.facts()

    def caption(self) -> str:
        """One sentence on what `shown` lists and how it was measured."""
        return (
            "what silencing all features of a source layer changes, as a share of the variance of "
            f"y_l on {self.tokens} rows and at the output, {self.effects.measured_on()}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per number: source, target (a layer or "output"), measure, unit, score, ends.

        Measures are "y" (a fraction of the variance of y_l), and at the output "loss" (nats) and
        "contrast" (logits).
        """
        return pd.DataFrame(
            {"source": s, **cell} for s in range(len(self.matrix)) for cell in self.effects.cells(s)
        )

    def shown(self) -> pd.DataFrame:
        """One row per target with the effect of every source, and one per reading of the output."""
        texts = [
            [f"layer {l}", *("" if effect != effect else f"{effect:.3f}" for effect in row)]
            for l, row in enumerate(self.matrix.tolist())
        ]
        for name, values in self.effects.on_output.items():
            texts.append(
                [f"output, {name} ({READING_UNITS[name]})", *(f"{v:+.4f}" for v in values.mean(0))]
            )
        return pd.DataFrame(texts, columns=["target", *self.columns])

    def notes(self) -> Sequence[str]:
        """What an effect says, and the error of first-order effects."""
        said = [
            "E(s->l) says what the features of source s do in the replaced ViT; 1 moves y_l as far "
            "as it varies over images."
        ]
        return said if self.effects.error is None else [*said, self.effects.error.text()]

    def metrics(self, prefix: str = "") -> list[Metric]:
        """Effects on the last target and on the output, named {prefix}effect_{rows}_{s}_to_{l}.

        Those on the output end in "_to_output_loss" and "_to_output_contrast".
        """
        last = len(self.matrix) - 1
        found = []
        for r in self.to_frame().itertuples():
            if r.target in (last, "output"):
                measure = "" if r.measure == "y" else f"_{r.measure}"
                name = f"{prefix}effect_{self.tokens}_{r.source}_to_{r.target}{measure}"
                found.append(Interval(r.score, r.low, r.high).metric(name, r.unit, self.n_images))
        return found

    def figure(self) -> go.Figure:
        """A heatmap of targets against sources, and of the output below them."""
        from vit_clt.analysis.contributions.figure import contribution_figure

        return contribution_figure([[self]])
