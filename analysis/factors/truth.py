"""Where a model works something out: what probes read by depth, and what ablations cost.

Nothing is measured here, and no CLT takes part: `probes` and `causal_effects` did it. Read
together they say where each factor can be read, where the class appears, and which layers it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pandas as pd

from vit_clt.analysis.causal.effects import CausalEffects
from vit_clt.analysis.probing.result import Probes
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.errors import InputError
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Truth(Study):
    """Probes and ablations of one model, on the same images.

    Raises:
        InputError: no study of ablations, one of other data than the probes' or of another depth,
            or one without readings.
    """

    name = "truth"

    probed: Probes
    ablated: Sequence[CausalEffects]
    """E.g. of MLPs, then of attention layers."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What factors are called, e.g. {"label": "last digit of the sum"}; else their own names."""

    def __post_init__(self) -> None:
        if not self.ablated:
            raise InputError("ablated", "is empty; expected at least one study of causal_effects.")
        for effects in self.ablated:
            if effects.data != self.probed.data:
                raise InputError(
                    "ablated",
                    f"holds effects on {effects.data}; expected {self.probed.data}, as the probes.",
                )
            if effects.readings is None:
                raise InputError(
                    "the effects hold no readings; causal_effects needs a classifier zs."
                )
            deepest, n_layers = max(self.probed.layers), self.ablated[0].n_layers
            if deepest >= effects.n_layers or effects.n_layers != n_layers:
                raise InputError(
                    "ablated",
                    f"holds effects of {effects.n_layers} layers; expected as many in every "
                    f"study, and the probed layer {deepest} among them.",
                )

    def facts(self) -> Facts:
        """Those of the probes, with how layers were ablated."""
        fills = dict.fromkeys(effects.fill for effects in self.ablated)
        templates = dict.fromkeys(str(effects.templates) for effects in self.ablated)
        return Facts(
            self.probed.data,
            self.probed.n,
            "cls patch",
            "the model's own",
            None,
            split=self.probed.split,
            fill=", ".join(fills),
            seed=self.probed.seed,
            more={"templates": ", ".join(templates)},
        )

    def caption(self) -> str:
        """Which images probes were read and fitted on."""
        return (
            f"{self.probed.data}, N = {self.probed.n}; probes fitted on {self.probed.n_train} "
            f"images of {self.probed.train_data}"
        )

    def to_frame(self) -> pd.DataFrame:
        """What the probes read."""
        return self.probed.to_frame()

    def printed(self) -> pd.DataFrame:
        """The probes at the ends of blocks."""
        return self.probed.printed()

    def metrics(self) -> list[Metric]:
        """Those of the probes, then of the ablations, named "{site}_...", in that order."""
        ablated = [
            replace(metric, name=f"{effects.site}_{metric.name}")
            for effects in self.ablated
            for metric in effects.metrics()
        ]
        return self.probed.metrics() + ablated

    def figure(self) -> go.Figure:
        """Probes by depth above, what ablations cost below."""
        from vit_clt.analysis.factors.truth_figure import truth_figure

        return truth_figure(self)
