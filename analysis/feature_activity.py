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
from tqdm import tqdm

from vit_clt.analysis.active_codes import ActiveCodes, active_codes
from vit_clt.data import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, Rows
from vit_clt.hooks.hooked_vit import HOOK_IN
from vit_clt.hooks.steering import row_index
from vit_clt.transcoder import CrossLayerTranscoder

POOL = 20
"""Features nearest in firing rate, at least, from which controls are drawn."""


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

    def rate(self, feature: int) -> float:
        """Share of the rows on which it is active."""
        return float(self.fired[feature] / self.n_rows)

    def typical(self, feature: int) -> float:
        """Its typical activation: the mean of z where it is active, 0 where it never is.

        A signed feature's (Abs-TopK) is its mean |z| with the sign of the sum, as its values could
        cancel; of one sign both are the same.
        """
        fired = int(self.fired[feature])
        size = self.size[feature] if self.total[feature] >= 0 else -self.size[feature]
        return float(size / fired) if fired else 0.0

    def alike(
        self, feature: int, n: int, rng: np.random.Generator, without: Collection[int]
    ) -> list[int]:
        """`n` other features of about its firing rate: drawn from the 20 (or n) that are nearest.

        Nearest in |ln rate|, among features that fire at all.

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
                f"n_random is {n}; layer {self.layer} has only {len(others)} other features that "
                "fire on these rows."
            )
        distance = np.abs(np.log(self.fired[others]) - np.log(max(1, self.fired[feature])))
        pool = others[np.argsort(distance, kind="stable")][: max(POOL, n)]
        return rng.choice(pool, n, replace=False).tolist()


class ActivitySums:
    """Gathers `FeatureActivity` batch by batch."""

    def __init__(self, layers: Collection[int], n_features: int):
        self.n_features = n_features
        # rows active, sum of z, sum of |z|
        self._sums = {s: np.zeros((3, n_features)) for s in layers}
        self._n_rows = dict.fromkeys(layers, 0)

    def add(self, layer: int, active: ActiveCodes) -> None:
        """Count one layer's codes of a batch."""
        values = active.values
        weights = torch.stack([torch.ones_like(values), values, values.abs()])
        for i, weight in enumerate(weights):
            self._sums[layer][i] += sums_by_feature(weight, active.features, self.n_features)
        self._n_rows[layer] += active.n_images * active.n_tokens

    def found(self) -> dict[int, FeatureActivity]:
        """By layer."""
        return {
            s: FeatureActivity(s, fired.astype(int), total, size, self._n_rows[s])
            for s, (fired, total, size) in self._sums.items()
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
    sums = ActivitySums(layers, clt.config.n_features)
    names = {s: HOOK_IN.format(l=s) for s in layers}
    rows = row_index(tokens)
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in tqdm(data, "typical activations", n_batches, disable=not progress):
        cache = vit.clean_cache(images.to(clt.b_dec.device), list(names.values()))
        for s, name in names.items():
            sums.add(s, active_codes(clt.encode(cache[name][:, rows], layer=s)))
    return sums.found()
