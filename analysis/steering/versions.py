"""The features that are steered together, and the random ones that stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from vit_clt.analysis.features.activity import FeatureActivity
from vit_clt.choices import EditKind
from vit_clt.errors import InputError
from vit_clt.hooks import Edit, Rows

Feature = tuple[int, int]
"""(source layer, feature number)."""
STEERED = "steered"


@dataclass(frozen=True)
class Steered:
    """Some features that are steered together, and how active they are in the unsteered model."""

    name: str
    """"steered", or "random 0", "random 1", ..."""
    features: list[Feature]
    rates: list[float]
    """Share of the rows on which each is active."""
    typical: list[float]
    """Mean of z of each feature over the rows where it is active: the unit of clamps."""
    image_rates: list[float]
    """Share of the images in which each is active on at least one of these rows."""
    cls_rates: list[float]
    """Share of the CLS rows on which each is active; NaN where CLS is not steered."""
    typical_by_kind: list[tuple[float, float]]
    """Mean of z of each feature where it is active, over CLS rows and over patch rows; 0 where it
    never fires."""

    def edits(
        self, kind: EditKind, strength: float | int, tokens: Rows, only_active: bool
    ) -> list[Edit]:
        """One edit for each feature, which clamps z to `strength` times its typical activation, or
        scales z by `strength`."""
        return [
            Edit(s, i, kind, value, tokens, only_active)
            for (s, i), value in zip(self.features, self.values(kind, strength), strict=True)
        ]

    def values(self, kind: EditKind, strength: float | int) -> list[float]:
        """The value that each z is set to (clamp), or the factor on it (scale)."""
        units = self.typical if kind == "clamp" else [1.0] * len(self.features)
        return [strength * unit for unit in units]

    def activity_text(self) -> str:
        """Typical activation and firing rates of each feature, over all rows and over CLS rows."""
        parts = []
        for i, (s, feature) in enumerate(self.features):
            text = f"{s}:{feature}: {self.typical[i]:.3g}"
            rates = f"active on {100 * self.rates[i]:.1f} % of these rows, "
            rates += f"{100 * self.image_rates[i]:.1f} % of images"
            if not isnan(self.cls_rates[i]):
                cls, others = self.typical_by_kind[i]
                text += f" (CLS rows {cls:.3g}, patch rows {others:.3g})"
                rates += f", {100 * self.cls_rates[i]:.1f} % of CLS rows"
            parts.append(f"{text}, {rates}")
        return "; ".join(parts)

    def text(self) -> str:
        """The features, as in "7:123, 8:4"."""
        return features_text(self.features)


def features_text(features: Sequence[Feature]) -> str:
    """Features as "layer:feature", joined by commas, as in "7:123, 8:4"."""
    return ", ".join(f"{s}:{i}" for s, i in features)


def steered_versions(
    activity: dict[int, FeatureActivity],
    features: Sequence[Feature],
    n_random: int,
    seed: int,
    data: str,
) -> list[Steered]:
    """The features to steer, followed by `n_random` sets of as many random ones of the same layers.

    Args:
        activity: activity of every layer of the features, on the rows steered.
        features: the features.
        n_random: number of random sets, which are the controls.
        seed: seed of the random sets.
        data: name of the images, for the error message.

    Raises:
        InputError: a feature never fires on these rows, or too few others do.
    """
    for s, i in features:
        if not activity[s].fired[i]:
            raise InputError(
                "feature",
                f"{s}:{i} is active on none of these rows of {data}; expected one that "
                "fires, as strengths are in units of its activation.",
            )
    rng = np.random.default_rng(seed)
    used: dict[int, set[int]] = {s: {i for t, i in features if t == s} for s in activity}
    drawn: list[list[Feature]] = [[] for _ in range(n_random)]
    for s, i in features:
        for control, other in zip(drawn, activity[s].alike(i, n_random, rng, used[s]), strict=True):
            control.append((s, other))
            used[s].add(other)
    sets = {STEERED: list(features)} | {f"random {j}": random for j, random in enumerate(drawn)}
    return [
        Steered(
            name,
            members,
            [activity[s].rate(i) for s, i in members],
            [activity[s].typical(i) for s, i in members],
            [activity[s].image_rate(i) for s, i in members],
            [activity[s].cls_rate(i) for s, i in members],
            [activity[s].typical_by_kind(i) for s, i in members],
        )
        for name, members in sets.items()
    ]
