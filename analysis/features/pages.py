"""The pages of many features, each made when it is asked for, so that memory holds one at a time.

The images that all pages show are read once, when the pages are chosen, and the features'
activations on them are kept: up to 24 activation maps a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, overload

import numpy as np

from vit_clt.analysis.features.active import CLS, PATCH
from vit_clt.analysis.features.page import (
    QUARTERS,
    ActivationRange,
    FeaturePage,
    activations_at,
    example,
    nearest_features,
)

if TYPE_CHECKING:
    from vit_clt.analysis.features.statistics import FeatureStatistics

EXAMPLES = 3
"""Images drawn from each activation range."""


class FeaturePages(Sequence[FeaturePage]):
    """The pages of some (layer, feature) pairs, in this order.

    Args:
        stats: the statistics of all features.
        features: (layer, feature) pairs without repeats, each active on an image.
        progress: show progress bars.
    """

    def __init__(
        self,
        stats: FeatureStatistics,
        features: Sequence[tuple[int, int]],
        *,
        progress: bool = False,
    ):
        self._stats, self.progress = stats, progress
        self._features = list(features)
        self._top = {(s, i): stats.tallies[s].top.of(i)[0].tolist() for s, i in features}
        self._drawn = {address: _draw(stats, *address) for address in features}
        self._images = {
            address: sorted({*top, *(row for rows in self._drawn[address] for row in rows)})
            for address, top in self._top.items()
        }
        self._values = activations_at(
            stats.vit, stats.clt, stats.data, self._images, progress=progress
        )
        self._near = nearest_features(stats.clt, features, progress=progress)
        self._purity = cache(stats.purity)
        self._sizes, self._rates = cache(stats.sizes), cache(stats.rates)

    @property
    def features(self) -> list[tuple[int, int]]:
        """The (layer, feature) pairs."""
        return self._features

    @property
    def rows(self) -> list[int]:
        """Numbers of the images that any page shows, ascending."""
        return sorted({row for rows in self._images.values() for row in rows})

    def __len__(self) -> int:
        return len(self._features)

    @overload
    def __getitem__(self, place: int) -> FeaturePage: ...

    @overload
    def __getitem__(self, place: slice) -> list[FeaturePage]: ...

    def __getitem__(self, place: int | slice) -> FeaturePage | list[FeaturePage]:
        if isinstance(place, slice):
            return [self._page(*address) for address in self._features[place]]
        return self._page(*self._features[place])

    def _page(self, layer: int, feature: int) -> FeaturePage:
        stats, address = self._stats, (layer, feature)
        examples = {
            row: example(stats.vit, row, int(stats.labels[row]), z)
            for row, z in zip(self._images[address], self._values[address], strict=True)
        }
        tally, effects = stats.tallies[layer], stats.effects
        active_images = int(tally.counts.images[feature])
        rates = self._rates(layer)[:, feature].tolist()
        edges, counts = tally.histograms.of(feature)
        near = self._near[address]
        return FeaturePage(
            layer=layer,
            feature=feature,
            image_rate=active_images / stats.n_images,
            cls_rate=rates[CLS],
            patch_rate=rates[PATCH],
            active_images=active_images,
            edges=edges,
            counts=counts[[CLS, PATCH]],
            top=[examples[row] for row in self._top[address]],
            ranges=[
                ActivationRange(low, high, [examples[row] for row in rows])
                for (low, high), rows in zip(QUARTERS, self._drawn[address], strict=True)
            ],
            writes=self._writes(layer, feature),
            effects=None if effects is None else effects.of(layer, feature),
            effect_images=0 if effects is None else int(effects.images[layer][feature]),
            near=near,
            together=[
                tally.jaccard(feature, stats.tallies[n.layer], n.feature)
                if n.layer in stats.tallies
                else float("nan")
                for n in near
            ],
            **{name: column[feature].item() for name, column in self._purity(layer).items()},
        )

    def _writes(self, layer: int, feature: int) -> dict[int, tuple[float, float]]:
        clt = self._stats.clt
        norms = clt.W_dec[layer][:, feature].detach().double().norm(dim=1).tolist()
        sizes = self._sizes(layer)[:, feature]
        strengths = {}
        for l, norm in zip(clt.config.targets(layer), norms, strict=True):
            strength = (sizes * norm / self._stats.norms[:, l]).tolist()
            strengths[l] = strength[CLS], strength[PATCH]
        return strengths


def _draw(stats: FeatureStatistics, layer: int, feature: int) -> list[list[int]]:
    """Numbers of images drawn from every range of `QUARTERS`, the most active image first."""
    rows, values = stats.tallies[layer].sample.of(feature)
    order = values.abs().argsort(stable=True)
    ranked = rows[order].tolist()
    rng = np.random.default_rng([stats.seed, layer, feature])
    drawn = []
    for low, high in QUARTERS:
        inside = ranked[round(low * len(ranked)) : round(high * len(ranked))]
        picked = rng.choice(len(inside), min(EXAMPLES, len(inside)), replace=False)
        drawn.append([inside[i] for i in sorted(picked, reverse=True)])
    return drawn
