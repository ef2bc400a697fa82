"""How far effects in another model agree with those in the ViT, beside permuted effects.

With x an effect in the ViT and y the same intervention's effect in the other model, over all
images, all sets of layers and, for logits, all classes:

    pearson         correlation of x and y
    slope           of y on x through the origin, sum xy / sum x^2: an effect of 0 should stay 0
    relative_error  sqrt(sum (y - x)^2 / sum x^2); 0 is exact, 1 is what predicting no effect gives
    spearman        rank correlation over the sets of the mean effects over images (loss alone)

The floor deals the other model's effects to the sets by chance, the same for all images: single
layers are permuted over layers, so that only what does not depend on the layer is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from vit_clt.analysis.contributions.parts import NEGLIGIBLE
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.analysis.stats.ranks import MIN_SOURCES, PERMUTATIONS, spearman

Measure = Literal["pearson", "slope", "relative_error", "spearman"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
_PER_IMAGE = ("x", "y", "xx", "yy", "xy", "error")


@dataclass(frozen=True)
class Products:
    """Sums of products of effects: x of the ViT, y of another model, on the same interventions.

    The effects of an image and a set of layers are one number (the loss) or one a class (logits),
    over which these sums run.
    """

    n_values: int
    """How many numbers an effect is."""
    x: Float[np.ndarray, "image set"]
    y: Float[np.ndarray, "image set"]
    xx: Float[np.ndarray, "image set"]
    yy: Float[np.ndarray, "image set"]
    xy: Float[np.ndarray, "image set"]
    error: Float[np.ndarray, "image set"]
    """Sums of (y - x)^2."""
    crossed: Float[np.ndarray, "set_of_vit set_of_other"]
    """Sums over images too, of x of one set times y of another."""

    @classmethod
    def of_numbers(
        cls, x: Float[np.ndarray, "image set"], y: Float[np.ndarray, "image set"]
    ) -> Products:
        """The products of effects that are one number each."""
        return cls(1, x, y, x * x, y * y, x * y, (y - x) ** 2, x.T @ y)

    def of_sets(self, chosen: Sequence[int]) -> Products:
        """Those of some of the sets."""
        parts = {name: getattr(self, name)[:, chosen] for name in _PER_IMAGE}
        return replace(self, **parts, crossed=self.crossed[np.ix_(chosen, chosen)])


@dataclass(frozen=True)
class EffectAgreement:
    """One measure of agreement."""

    value: Interval
    """NaN where it is not defined; the interval is over images."""
    floor: Interval
    """Mean over permutations of the sets, with the central 95 % of the permutations."""


def effect_agreement(products: Products, seed: int = 0) -> dict[Measure, EffectAgreement]:
    """All measures of agreement, each with its interval and its floor.

    Args:
        products: products of the effects of both models.
        seed: seed of the bootstrap and of the permutations.
    """
    n_images, n_sets = products.x.shape
    sums = np.stack([getattr(products, name).sum(1) for name in _PER_IMAGE], 1)
    drawn = bootstrap_means(sums, seed)
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(np.arange(n_sets), (PERMUTATIONS, 1)), axis=1)
    mean = sums.mean(0)
    permuted = np.tile(mean, (PERMUTATIONS, 1))
    _, _, xx, yy, _, _ = mean
    permuted[:, 4] = products.crossed[np.arange(n_sets), orders].sum(1) / n_images
    permuted[:, 5] = (xx + yy - 2 * permuted[:, 4]).clip(0)
    n_numbers = n_sets * products.n_values
    found: dict[Measure, EffectAgreement] = {
        name: _agreement(formula, mean / n_numbers, drawn / n_numbers, permuted / n_numbers)
        for name, formula in _FORMULAS.items()
    }
    if products.n_values == 1:
        means = np.concatenate([products.x, products.y], 1)
        x, y = np.split(means.mean(0), 2)
        draws = np.split(bootstrap_means(means, seed), 2, axis=1)
        found["spearman"] = EffectAgreement(
            Interval.of(float(_ranked(x, y)), _ranked(*draws)), _floor(_ranked(x, y[orders]))
        )
    return found


def _agreement(
    formula: Callable[[np.ndarray], np.ndarray],
    mean: Float[np.ndarray, " sum"],
    drawn: Float[np.ndarray, "draw sum"],
    permuted: Float[np.ndarray, "permutation sum"],
) -> EffectAgreement:
    value = float(formula(mean[None])[0])
    return EffectAgreement(Interval.of(value, formula(drawn)), _floor(formula(permuted)))


def _floor(values: np.ndarray) -> Interval:
    return Interval.of(float(values.mean()), values)


def _pearson(means: Float[np.ndarray, "row sum"]) -> Float[np.ndarray, " row"]:
    x, y, xx, yy, xy, _ = means.T
    var_x, var_y = xx - x * x, yy - y * y
    varies = (var_x > NEGLIGIBLE * xx) & (var_y > NEGLIGIBLE * yy)
    return _ratio(xy - x * y, np.sqrt((var_x * var_y).clip(0)), varies)


def _slope(means: Float[np.ndarray, "row sum"]) -> Float[np.ndarray, " row"]:
    return _ratio(means[:, 4], means[:, 2], means[:, 2] > 0)


def _relative_error(means: Float[np.ndarray, "row sum"]) -> Float[np.ndarray, " row"]:
    return np.sqrt(_ratio(means[:, 5], means[:, 2], means[:, 2] > 0))


_FORMULAS: dict[Measure, Callable[[np.ndarray], np.ndarray]] = {
    "pearson": _pearson,
    "slope": _slope,
    "relative_error": _relative_error,
}


def _ratio(above: np.ndarray, below: np.ndarray, defined: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=defined)


def _ranked(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.shape[-1] < MIN_SOURCES:
        return np.full(y.shape[:-1], np.nan)
    return spearman(x, y)
