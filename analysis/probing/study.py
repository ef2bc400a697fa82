"""Where in a ViT can a factor of its images be read linearly? No CLT takes part.

At every depth of the residual stream, and at what each MLP reads (x_l) and puts out (y_l), a
discriminant (`vit_clt.analysis.probing.discriminant`) is fitted on training images. Its accuracy
and cross-entropy are measured on test images, from CLS rows and from patch rows. The form is ours.

The patch rows of an image are represented by their mean over the left half of the patch grid beside
their mean over its right half. The mean over all patches would lose where things are. All patches
side by side have more numbers than there are images, and a probe of them would fit positions before
values.

**What an accuracy above the additive floor says.** The floor is the same probe of the data's
factors, one-hot. Let the class be the last digit of the sum of two digits that are uniform and
independent. Then all classes have the same mean of any f(left) + g(right), so a discriminant (and
least squares, and logistic regression) of anything additive stays near chance; a probe that reads
more shows that the model has combined the two digits. It does not show that no linear map of the
digits reads the class: ten intervals of left + right, set by hand, reach 75 %, which no fit by
likelihood finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vit_clt.analysis.probing.discriminant import Discriminant
from vit_clt.analysis.probing.places import Place, n_columns, probe_rows
from vit_clt.analysis.probing.result import Floors, Probe, Probes
from vit_clt.analysis.stats.intervals import mean_intervals
from vit_clt.analysis.stats.readings import Reading
from vit_clt.choices import KEPT_BYTES
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, layer_list
from vit_clt.layers_together import layers_together
from vit_clt.progress import Progress

LABEL = "label"
"""Name of the factor that every labelled image has, its class."""
PERMUTATIONS = 10
FEWEST = 10
"""The least number of training images that every value of a factor needs."""


@torch.no_grad()
def probes(
    vit: HookedViT,
    train: ImageData,
    test: ImageData,
    *,
    factors: Sequence[str] | None = None,
    layers: int | Iterable[int] | None = None,
    kept_bytes: int = KEPT_BYTES,
    seed: int = 0,
    progress: bool = False,
) -> Probes:
    """Fit a linear probe of every factor at every place, and read it on test images.

    3 d_model numbers are kept of each image and place (150 MB for 6,000 images of a model of 8
    layers and width 64). The images are passed through the model once, or once for every group of
    layers of which `kept_bytes` can be kept.

    Args:
        vit: the model; hooks attached to it do not fire.
        train: images that probes are fitted on.
        test: other images, on which probes are read.
        factors: names among `test.factors`, or "label"; all of them by default.
        layers: layers whose stream, x_l and y_l are read; all by default.
        kept_bytes: the most bytes of these numbers, or those of one layer.
        seed: seed of permutations, of the rows that choose the shrinkage, and of the bootstrap.
        progress: show progress bars.

    Raises:
        InputError: a factor or layer is unknown, labels are missing, a factor has one value or
            fewer than 10 training images of a value, images have another size, or activations are
            NaN or infinite.
    """
    check_prepared(vit, train)
    check_prepared(vit, test)
    names = _known_factors(factors, train, test)
    layers = layer_list(range(vit.cfg.n_layers) if layers is None else layers, vit.cfg.n_layers)
    train_factors, test_factors = train.factors or {}, test.factors or {}
    factor_values = {
        name: _Values.of(name, train_factors[name].numpy(), test_factors[name].numpy())
        for name in _shared_factors(train, test)
    }
    values = dict(factor_values)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(train)) for _ in range(PERMUTATIONS)]
    # The place None stands for the additive floor.
    outcomes: dict[tuple[str, Place | None], _ProbeOutcome] = {}
    an_image = {l: 4 * n_columns(vit, l) for l in layers}
    sizes = {l: (len(train) + len(test)) * size for l, size in an_image.items()}
    for together in layers_together(sizes, kept_bytes):
        train_vectors, train_labels = probe_rows(vit, train, together, progress=progress)
        test_vectors, test_labels = probe_rows(vit, test, together, progress=progress)
        if LABEL in names and LABEL not in values:
            values[LABEL] = _Values.of(LABEL, train_labels, test_labels)
        for place in Progress(list(train_vectors), "probes", disable=not progress):
            discriminant = Discriminant(train_vectors[place], seed)
            for name in names:
                outcomes[name, place] = _ProbeOutcome.of(
                    discriminant, values[name], test_vectors[place], orders
                )
        # those of the next layers take their place in memory
        train_vectors.clear()
        test_vectors.clear()
    if LABEL in names and factor_values:
        one_hot = Discriminant(
            np.hstack([factor.one_hot(factor.train) for factor in factor_values.values()]), seed
        )
        test_rows = np.hstack([factor.one_hot(factor.test) for factor in factor_values.values()])
        outcomes[LABEL, None] = _ProbeOutcome.of(one_hot, values[LABEL], test_rows, [])
    readings = dict(zip(outcomes, _readings(list(outcomes.values()), seed), strict=True))
    return Probes(
        [
            Probe(name, place, readings[name, place], *outcome.permuted, outcome.shrinkage)
            for (name, place), outcome in outcomes.items()
            if place is not None
        ],
        {name: values[name].floors(readings.get((name, None))) for name in names},
        layers,
        vit.cfg.model,
        test.name,
        test.split,
        train.name,
        len(test),
        len(train),
        seed,
    )


@dataclass(frozen=True)
class _Values:
    """Values of one factor of the training and of the test images, as numbers from 0."""

    train: np.ndarray
    test: np.ndarray
    n: int

    @classmethod
    def of(cls, name: str, train: np.ndarray, test: np.ndarray) -> _Values:
        if name == LABEL and min(train.min(), test.min()) < 0:
            raise InputError("labels are not known; expected a class number for every image.")
        known = np.union1d(train, test)
        counts = (train[:, None] == known).sum(0)
        if len(known) == 1:
            raise InputError(
                "factor", f'"{name}" is {known[0]} in every image; expected at least two values.'
            )
        if counts.min() < FEWEST:
            raise InputError(
                "factor",
                f'"{name}" is {known[counts.argmin()]} in {counts.min()} training images; '
                f"expected at least {FEWEST} of each value.",
            )
        return cls(np.searchsorted(known, train), np.searchsorted(known, test), len(known))

    def one_hot(self, values: np.ndarray) -> np.ndarray:
        return np.eye(self.n)[values]

    def floors(self, additive: Reading | None) -> Floors:
        share = np.bincount(self.train, minlength=self.n) / len(self.train)
        chance = float((self.test == share.argmax()).mean())
        return Floors(chance, float(-np.log(share)[self.test].mean()), additive)


@dataclass(frozen=True)
class _ProbeOutcome:
    """Accuracy and loss of a probe on every test image, and means of probes of permuted values."""

    correct: np.ndarray
    loss: np.ndarray
    permuted: tuple[float, float]
    shrinkage: float

    @classmethod
    def of(
        cls,
        discriminant: Discriminant,
        values: _Values,
        test_rows: np.ndarray,
        orders: list[np.ndarray],
    ) -> _ProbeOutcome:
        def outcome(train: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
            log_p, shrinkage = discriminant.probe(train, values.n, test_rows)
            loss = -log_p[np.arange(len(test_rows)), values.test]
            return (log_p.argmax(1) == values.test).astype(float), loss, shrinkage

        floors = [outcome(values.train[order])[:2] for order in orders]
        means = np.array(floors).mean((0, 2)) if floors else np.full(2, np.nan)
        correct, loss, shrinkage = outcome(values.train)
        return cls(correct, loss, (float(means[0]), float(means[1])), shrinkage)


def _readings(outcomes: list[_ProbeOutcome], seed: int) -> list[Reading]:
    top1, loss = (
        mean_intervals(np.stack(values, axis=1), seed)
        for values in ([o.correct for o in outcomes], [o.loss for o in outcomes])
    )
    n = len(outcomes[0].correct)
    return [Reading(*pair, n) for pair in zip(top1, loss, strict=True)]


def _shared_factors(train: ImageData, test: ImageData) -> list[str]:
    return [name for name in test.factors or {} if name in (train.factors or {})]


def _known_factors(asked: Sequence[str] | None, train: ImageData, test: ImageData) -> list[str]:
    known = [*_shared_factors(train, test), LABEL]
    for name in asked or ():
        if name not in known:
            raise InputError("factor", f'is "{name}"; {test.name} has {", ".join(known)}.')
    if asked is not None and not asked:
        raise InputError("factors", f"is empty; {test.name} has {', '.join(known)}.")
    return known if asked is None else list(dict.fromkeys(asked))
