"""Where a model computes something: what probes read at each depth, beside what ablations cost.

Nothing is measured here, and no CLT takes part: the results come from `probes` and
`causal_effects`. Together they say where each factor can be read, where the class appears, and
which layers it needs.
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
        InputError: there is no study of ablations, or one is of other data or another depth than
            the probes, or has no readings.
    """

    name = "truth"

    probed: Probes
    ablated: Sequence[CausalEffects]
    """Studies of ablations, e.g. of MLPs, then of attention layers."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of factors for figures where their own are not clear, e.g. {"label": "last digit of
    the sum"}."""

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
                raise InputError("the effects hold no readings; causal_effects needs a classifier.")
            deepest, n_layers = max(self.probed.layers), self.ablated[0].n_layers
            if deepest >= effects.n_layers or effects.n_layers != n_layers:
                raise InputError(
                    "ablated",
                    f"holds effects of {effects.n_layers} layers; expected as many in every "
                    f"study, and the probed layer {deepest} among them.",
                )

    def facts(self) -> Facts:
        """Facts of the probes, with the fill of the ablations."""
        fills = dict.fromkeys(effects.fill for effects in self.ablated)
        readouts = dict.fromkeys(str(effects.readout) for effects in self.ablated)
        return Facts(
            self.probed.data,
            self.probed.n,
            "cls patch",
            "the model's own",
            None,
            split=self.probed.split,
            fill=", ".join(fills),
            seed=self.probed.seed,
            more={"readout": ", ".join(readouts)},
        )

    def caption(self) -> str:
        """The images that the probes were measured on, and those that they were fitted on."""
        return (
            f"{self.probed.data}, N = {self.probed.n}; probes fitted on {self.probed.n_train} "
            f"images of {self.probed.train_data}"
        )

    def to_frame(self) -> pd.DataFrame:
        """The table of the probes; see `Probes.to_frame`."""
        return self.probed.to_frame()

    def printed(self) -> pd.DataFrame:
        """The probes at the ends of blocks."""
        return self.probed.printed()

    def metrics(self) -> list[Metric]:
        """Metrics of the probes, then those of the ablations, whose names start with their site."""
        ablated = [
            replace(metric, name=f"{effects.site}_{metric.name}")
            for effects in self.ablated
            for metric in effects.metrics()
        ]
        return self.probed.metrics() + ablated

    def figure(self) -> go.Figure:
        """A figure of the probes by depth, with the cost of ablations below it."""
        from vit_clt.analysis.factors.truth_figure import truth_figure

        return truth_figure(self)
