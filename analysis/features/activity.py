"""How often and how strongly each feature of some layers fires, and which fire about as often.

On the teacher trajectory, over the rows of all images; activity is z != 0.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.features.active import CLS, ActiveCodes, FeatureCounts, active_codes
from vit_clt.analysis.stats.equal_rate import equal_rate
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, Rows
from vit_clt.hooks.points import HOOK_IN
from vit_clt.hooks.rows import TokenRows
from vit_clt.hooks.steering import row_index
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class FeatureActivity:
    """What the features of one layer do on some rows."""

    layer: int
    fired: Int[np.ndarray, " feature"]
    """Rows on which each is active."""
    total: Float[np.ndarray, " feature"]
    """Sum of z."""
    size: Float[np.ndarray, " feature"]
    """Sum of |z|."""
    n_rows: int
    """Rows counted, of all images together."""
    images: Int[np.ndarray, " feature"]
    """Images on which each is active, on one of these rows or more."""
    n_images: int
    cls_fired: Int[np.ndarray, " feature"]
    """CLS rows on which each is active; 0 where CLS is not among the rows."""
    cls_size: Float[np.ndarray, " feature"]
    """Sum of |z| over CLS rows."""
    has_cls: bool
    """Whether CLS is among the rows."""

    def rate(self, feature: int) -> float:
        """Share of the rows on which it is active."""
        return float(self.fired[feature] / self.n_rows)

    def image_rate(self, feature: int) -> float:
        """Share of the images on which it is active on one of these rows or more."""
        return float(self.images[feature] / self.n_images)

    def cls_rate(self, feature: int) -> float:
        """Share of the CLS rows on which it is active; NaN where CLS is not among the rows."""
        return float(self.cls_fired[feature] / self.n_images) if self.has_cls else float("nan")

    def typical(self, feature: int) -> float:
        """Its typical activation: the mean of z where it is active, 0 where it never is.

        A signed feature's (Abs-TopK) is its mean |z| with the sign of the sum, as its values could
        cancel; of one sign both are the same.
        """
        fired = int(self.fired[feature])
        size = self.size[feature] if self.total[feature] >= 0 else -self.size[feature]
        return float(size / fired) if fired else 0.0

    def typical_by_kind(self, feature: int) -> tuple[float, float]:
        """`typical` over CLS rows alone, and over the other rows alone, with its sign; 0 where it
        never fires on them."""
        sign = 1 if self.total[feature] >= 0 else -1
        fired, size = int(self.cls_fired[feature]), float(self.cls_size[feature])
        others = int(self.fired[feature]) - fired
        rest = float(self.size[feature]) - size
        return sign * size / fired if fired else 0.0, sign * rest / others if others else 0.0

    def alike(
        self, feature: int, n: int, rng: np.random.Generator, without: Collection[int]
    ) -> list[int]:
        """`n` other features of equal rate (`equal_rate`), of those that fire at all.

        Args:
            feature: the one to match.
            n: how many.
            rng: of the draw.
            without: features never drawn.

        Raises:
            InputError: fewer than `n` others fire.
        """
        others = np.setdiff1d(np.flatnonzero(self.fired), [feature, *without])
        if len(others) < n:
            raise InputError(
                "n_random",
                f"is {n}; layer {self.layer} has only {len(others)} other features that "
                "fire on these rows.",
            )
        return equal_rate(self.fired, feature, others, n, rng)


class ActivitySums:
    """Gathers `FeatureActivity` batch by batch."""

    def __init__(self, layers: Collection[int], n_features: int, tokens: Rows, rows: TokenRows):
        self.n_features = n_features
        groups = rows.groups[row_index(tokens, rows)]
        self._has_cls = CLS in groups.tolist()
        self._counts = {s: FeatureCounts(n_features, groups) for s in layers}
        # sum of z, sum of |z|, sum of |z| over CLS rows
        self._sums = {s: np.zeros((3, n_features)) for s in layers}
        self._n_rows = dict.fromkeys(layers, 0)
        self._n_images = dict.fromkeys(layers, 0)

    def add(self, layer: int, active: ActiveCodes) -> None:
        """Count one layer's codes of a batch."""
        counts, values = self._counts[layer], active.values
        counts.add(active, active.of_images())
        on_cls = values.abs() * (counts.kinds(active) == CLS)
        for i, each in enumerate((values, values.abs(), on_cls)):
            self._sums[layer][i] += sums_by_feature(each, active.features, self.n_features)
        self._n_rows[layer] += active.n_images * active.n_tokens
        self._n_images[layer] += active.n_images

    def found(self) -> dict[int, FeatureActivity]:
        """By layer."""
        return {
            s: FeatureActivity(
                layer=s,
                fired=self._counts[s].rows.sum(0).numpy(),
                total=total,
                size=size,
                n_rows=self._n_rows[s],
                images=self._counts[s].images.numpy(),
                n_images=self._n_images[s],
                cls_fired=self._counts[s].rows[CLS].numpy(),
                cls_size=cls_size,
                has_cls=self._has_cls,
            )
            for s, (total, size, cls_size) in self._sums.items()
        }


def sums_by_feature(
    values: Float[Tensor, " entry"], features: Int[Tensor, " entry"], n_features: int
) -> Float[np.ndarray, " feature"]:
    """Sum of the entries of each feature, in float64."""
    sums = torch.bincount(features, values.double(), minlength=n_features)
    # of no entries torch counts in integers
    return sums.double().cpu().numpy()


@torch.no_grad()
def feature_activity(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    layers: Sequence[int],
    *,
    tokens: Rows = "all",
    progress: bool = False,
) -> dict[int, FeatureActivity]:
    """One pass over the images.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        data: the images.
        layers: source layers.
        tokens: rows counted.
        progress: show a progress bar.
    """
    sums = ActivitySums(layers, clt.config.n_features, tokens, vit.cfg.rows)
    names = {s: HOOK_IN.format(l=s) for s in layers}
    rows = row_index(tokens, vit.cfg.rows)
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in Progress(data, "typical activations", n_batches, disable=not progress):
        cache = vit.clean_cache(images.to(clt.b_dec.device), list(names.values()))
        for s, name in names.items():
            sums.add(s, active_codes(clt.encode(cache[name][:, rows], layer=s)))
    return sums.found()
