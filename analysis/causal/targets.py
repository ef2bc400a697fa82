"""How far ablating a source moves what a target reads (x_l) or puts out (y_l), image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.contributions.parts import NEGLIGIBLE
from vit_clt.analysis.stats.intervals import bootstrap_means
from vit_clt.choices import EffectPath

Path = EffectPath
Read = Literal["y", "x"]
PATHS: tuple[Path, ...] = get_args(Path)
READS: tuple[Read, ...] = get_args(Read)


@dataclass(frozen=True)
class TargetEffects:
    """Effects on v, which is y or x, from squared distances summed over an image's scored rows."""

    moved: Float[np.ndarray, "image target source"]
    """||v_l - v_l^(s)||^2; NaN where the target does not read the source."""
    spread: Float[np.ndarray, "image target"]
    """||v_l - mean v_l||^2; NaN where v_l does not vary over images."""

    @property
    def matrix(self) -> Float[np.ndarray, "target source"]:
        """The effects, E||v_l - v_l^(s)||^2 / E||v_l - mean v_l||^2."""
        return self.moved.mean(0) / self.spread.mean(0)[:, None]

    def draws(self, seed: int = 0) -> Float[np.ndarray, "draw target source"]:
        """The effects on bootstrap resamples of the images; a seed gives all effects the same."""
        n, n_layers = self.spread.shape
        values = np.concatenate([self.moved.reshape(n, -1), self.spread], axis=1)
        means = bootstrap_means(values, seed)
        moved = means[:, :-n_layers].reshape(-1, *self.moved.shape[1:])
        return moved / means[:, -n_layers:, None]


class EffectSums:
    """Gathers the sums of `TargetEffects` batch by batch, in float64."""

    def __init__(self, n_images: int, n_layers: int):
        shape = (n_images, n_layers, n_layers)
        self._moved = {(p, r): np.full(shape, np.nan) for p in PATHS for r in READS}
        self._spread = {r: np.zeros(shape[:2]) for r in READS}
        self._power = {r: np.zeros(n_layers) for r in READS}

    def add_clean(
        self,
        images: Sequence[int],
        read: Read,
        values: Sequence[Float[Tensor, "image row d_model"]],
        means: Sequence[Float[Tensor, "row d_model"]],
    ) -> None:
        """Add what targets read (x) or put out (y) in the unaltered model, layer by layer."""
        for l, (value, mean) in enumerate(zip(values, means, strict=True)):
            self._spread[read][images, l] = _square(value - mean)
            self._power[read][l] += _square(value).sum()

    def add(
        self,
        images: Sequence[int],
        path: Path,
        target: int,
        source: int,
        dx: Float[Tensor, "image row d_model"],
        dy: Float[Tensor, "image row d_model"],
    ) -> None:
        """Add how far ablating `source` moves x and y of `target`."""
        self._moved[path, "x"][images, target, source] = _square(dx)
        self._moved[path, "y"][images, target, source] = _square(dy)

    def effects(self) -> dict[tuple[Path, Read], TargetEffects]:
        """The effects on every target, by path and by what is read, after all batches."""
        for read, spread in self._spread.items():
            spread[:, spread.sum(0) <= NEGLIGIBLE * self._power[read]] = np.nan
        return {key: TargetEffects(m, self._spread[key[1]]) for key, m in self._moved.items()}


def _square(values: Tensor) -> np.ndarray:
    return values.double().square().sum((1, 2)).cpu().numpy()
