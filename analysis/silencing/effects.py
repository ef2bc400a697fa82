"""The effects of silencing, image by image, and what they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from vit_clt.analysis.causal.targets import TargetEffects
from vit_clt.analysis.reporting.study import Facts
from vit_clt.analysis.silencing.changes import Silenced
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.choices import EffectOrder, EffectPath, Fill, TokenKind

Reading = Literal["loss", "contrast"]
READING_UNITS: dict[Reading, str] = {"loss": "nats", "contrast": "logits"}
"""What is read at the output: the loss, and the label's logit less the mean of the others'."""


@dataclass(frozen=True)
class FirstOrderError:
    """First-order effects against exact ones, which were also measured on some of the images."""

    n: int
    """Number of these images."""
    y: float
    """||first order - exact|| / ||exact|| over all effects on y; those to first order are of all
    images, so that this holds the noise of random probes and of the choice of images too. NaN where
    nothing is silenced but at its own target."""
    outputs: Mapping[Reading, float]
    """The same over all effects on the output; both are of these images."""

    def text(self) -> str:
        """The errors in words."""
        parts = [("y", self.y), *self.outputs.items()]
        listed = ", ".join(f"{name} {100 * error:.1f} %" for name, error in parts)
        return f"first order against exact on {self.n} images, relative error: {listed}"


@dataclass(frozen=True, kw_only=True)
class SilencingEffects:
    """Effects of silencing on y_l and, with a classifier, on the output."""

    silenced: Sequence[Silenced]
    on_targets: TargetEffects
    """Effects on y_l by what is silenced, in the place of the source; NaN below its layer."""
    on_output: Mapping[Reading, Float[np.ndarray, "image silenced"]]
    """Changes of each reading of an image: none without a classifier, to first order the loss."""
    path: EffectPath
    order: EffectOrder
    error: FirstOrderError | None
    """None if the order is exact, or the error was not asked for."""
    tokens: TokenKind
    """Rows of y_l that are compared."""
    ablated: TokenKind
    """Rows on which codes are silenced."""
    fill: Fill
    readout: str | None
    """Name of the classifier; None without one."""
    model: str
    data: str
    split: str | None
    n: int
    l0: float
    """Active features a token row and layer, on the rows of `tokens`."""
    seed: int
    """Seed of donors, probes and bootstraps."""

    @cached_property
    def draws(self) -> Float[np.ndarray, "draw target silenced"]:
        """Effects on y on bootstrap draws of the images, which effects on the output share."""
        return self.on_targets.draws(self.seed)

    @cached_property
    def output_draws(self) -> dict[Reading, Float[np.ndarray, "draw silenced"]]:
        """Mean changes of each reading on the same bootstrap draws."""
        return {name: bootstrap_means(each, self.seed) for name, each in self.on_output.items()}

    def on_y(self, target: int, i: int) -> Interval:
        """Effect of the i-th silencing on y of a target, with its interval over images."""
        return Interval.of(float(self.on_targets.matrix[target, i]), self.draws[:, target, i])

    def output(self, reading: Reading, i: int) -> Interval:
        """Mean change of a reading by the i-th silencing, with its interval over images."""
        value = float(self.on_output[reading][:, i].mean())
        return Interval.of(value, self.output_draws[reading][:, i])

    def cells(self, i: int) -> list[dict[str, Any]]:
        """Table cells of the i-th silencing: target (a layer or "output"), measure, score, unit."""
        matrix = self.on_targets.matrix
        found: list[tuple[int | str, str, str, Interval]] = [
            (l, "y", "fraction", self.on_y(l, i))
            for l in range(len(matrix))
            if l >= self.silenced[i].layer
        ]
        found += [
            ("output", name, READING_UNITS[name], self.output(name, i)) for name in self.on_output
        ]
        return [
            {
                "target": target,
                "measure": measure,
                "unit": unit,
                "score": float(each),
                "low": each.low,
                "high": each.high,
            }
            for target, measure, unit, each in found
        ]

    def how(self) -> str:
        """Path, fill, silenced rows and order in words."""
        order = ", first order" if self.order == "first" else ""
        return f"{self.path}, {self.fill} fill, {self.ablated} rows silenced{order}"

    def facts(self) -> Facts:
        """What the effects were measured on, and how."""
        return Facts(
            data=self.data,
            n=self.n,
            tokens=self.tokens,
            trajectory="stream",
            l0=self.l0,
            split=self.split,
            fill=self.fill,
            seed=self.seed,
            more={
                "path": self.path,
                "order": self.order,
                "ablated": self.ablated,
                "readout": self.readout,
                "model": self.model,
                "first_order_error": None
                if self.error is None
                else {"n": self.error.n, "y": self.error.y, **self.error.outputs},
            },
        )

    def measured_on(self) -> str:
        """Path, rows, images, readout and L0, for captions."""
        readout = "" if self.readout is None else f", readout: {self.readout}"
        return (
            f"{self.how()}, all MLPs replaced with error nodes, {self.data}, N = {self.n}"
            f"{readout}, L0 {self.l0:.1f}, seed {self.seed}"
        )
