"""Interventions that a ViT and its surrogate undergo alike, and the values that they write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

from torch import Tensor

from vit_clt.analysis.stats.donors import donor_cycle
from vit_clt.analysis.stats.means import position_means
from vit_clt.analysis.stats.names import LayerSet
from vit_clt.choices import Fill, Site, TokenKind, check_choice
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT, token_rows
from vit_clt.hooks.points import SITE_OUT
from vit_clt.hooks.rows import rows_unread


@dataclass(frozen=True)
class Intervention:
    """What is done to each set of layers: which output is overwritten, with what, on which rows."""

    site: Site = "mlp"
    fill: Fill = "mean"
    ablated: TokenKind = "all"

    def check(self, vit: HookedViT) -> None:
        """Refuse an intervention that this model cannot undergo.

        Raises:
            InputError: an unknown site or fill, or rows that the model does not have.
        """
        check_choice("site", self.site, get_args(Site))
        check_choice("fill", self.fill, get_args(Fill))
        token_rows(self.ablated, vit.cfg.rows)

    def reaching(self, vit: HookedViT, sets: Sequence[LayerSet]) -> list[LayerSet]:
        """The sets of layers whose intervention can reach the output at all."""
        n, pools_cls = vit.cfg.n_layers, vit.cfg.pools_cls
        return [s for s in sets if not rows_unread(self.ablated, min(s), n, pools_cls)]

    def acts_directly(self, vit: HookedViT) -> bool:
        """Whether the final pooling reads any of the overwritten rows."""
        return not vit.cfg.pools_cls or self.ablated in ("cls", "all")

    def __str__(self) -> str:
        return f"{self.site}, {self.fill}, {self.ablated} rows"


def every_intervention(vit: HookedViT) -> list[Intervention]:
    """Every site, fill and kind of rows: CLS rows, patch rows and all rows."""
    kinds: tuple[TokenKind, ...] = ("all", "cls", "patch")
    choices = product(get_args(Site), get_args(Fill), vit.cfg.rows.having(kinds))
    return [Intervention(*choice) for choice in choices]


def layers_kind(layers: LayerSet, n_layers: int) -> str:
    """What a set of layers is: "single", "range" (from layer 0 or to the last), or "other"."""
    if len(layers) == 1:
        return "single"
    consecutive = layers[-1] - layers[0] + 1 == len(layers)
    at_an_end = layers[0] == 0 or layers[-1] == n_layers - 1
    return "range" if consecutive and at_an_end else "other"


class FillValues:
    """The values that interventions write: one tensor for the ViT and for every surrogate of it.

    They are the ViT's own, from clean passes: the mean over all images at each position, or the
    outputs in one other image's pass, the same image for all layers.

    Args:
        vit: the model.
        data: the images.
        interventions: what is done to them.
        seed: seed of the donors.
        progress: show a progress bar.

    Raises:
        InputError: an activation is NaN or infinite, or there is one image and a resample.
    """

    def __init__(
        self,
        vit: HookedViT,
        data: ImageData,
        interventions: Sequence[Intervention],
        seed: int,
        progress: bool = False,
    ):
        self._vit, self._data = vit, data
        layers = range(vit.cfg.n_layers)
        self._names = {
            site: [SITE_OUT[site].format(l=l) for l in layers]
            for site in dict.fromkeys(each.site for each in interventions)
        }
        fills = {each.fill for each in interventions}
        self._donors = donor_cycle(len(data), seed) if "resample" in fills else []
        self._means: dict[str, Tensor] = {}
        if "mean" in fills:
            self._means = position_means(vit, data, self._all, title="means", progress=progress)
        self._resampled: dict[str, Tensor] = {}

    @property
    def _all(self) -> list[str]:
        return [name for names in self._names.values() for name in names]

    def begin(self, batch: Sequence[int]) -> None:
        """Make the values of the images with these numbers ready."""
        if self._donors:
            donors = self._data.batch([self._donors[i] for i in batch])[0]
            self._resampled = self._vit.clean_cache(donors.to(self._vit.device), self._all)

    def of(self, intervention: Intervention) -> dict[int, Tensor] | None:
        """By layer, the values on the ablated rows, of the batch begun last; None for zeros."""
        if intervention.fill == "zero":
            return None
        outputs = self._means if intervention.fill == "mean" else self._resampled
        rows = token_rows(intervention.ablated, self._vit.cfg.rows)
        names = self._names[intervention.site]
        return {l: outputs[name][..., rows, :] for l, name in enumerate(names)}
