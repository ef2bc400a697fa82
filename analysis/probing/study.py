"""Where in a ViT can a factor of its images be read linearly? No CLT takes part.

At every depth of the residual stream, and at what each MLP reads (x_l) and puts out (y_l), a
discriminant (`vit_clt.analysis.probing.discriminant`) is fitted on training images and read on
others: accuracy and cross-entropy on CLS rows, and on patch rows. The form is ours.

Patch rows stand for an image as their mean over the left and their mean over the right half of the
patch grid, side by side. The mean over all patches, of which this is a finer one, loses where
things are; every patch side by side has more numbers than there are images, and a probe of it
learns positions before it reads values.

**What an accuracy above the additive floor says.** The floor is the same probe of the data's
factors, one-hot. Where the class is the last digit of a sum of two even and independent digits, all
classes have one mean in any f(left) + g(right), so a discriminant (and least squares, and logistic
regression) of whatever is additive stays near chance, and one that reads more shows that the two
digits have been brought together. It does not show that no linear map of the digits could score:
ten intervals of left + right, made by hand, have 75 %, which no fit by likelihood finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from vit_clt.analysis.probing.discriminant import Discriminant
from vit_clt.analysis.probing.places import Place, probe_rows
from vit_clt.analysis.probing.result import Floors, Probe, Probes
from vit_clt.analysis.stats.intervals import mean_intervals
from vit_clt.analysis.stats.readings import Reading
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, layer_list

LABEL = "label"
"""The factor that every labelled image has: its class."""
PERMUTATIONS = 10
FEWEST = 10
"""Training images that every value of a factor needs."""


@torch.no_grad()
def probes(
    vit: HookedViT,
    train: ImageData,
    test: ImageData,
    *,
    factors: Sequence[str] | None = None,
    layers: int | Iterable[int] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Probes:
    """Fit and read every probe.

    One pass over the images; of each, 3 d_model numbers a place are kept (150 MB for 6,000 images
    of a model of 8 layers and width 64).

    Args:
        vit: the model; hooks attached to it do not fire.
        train: images that probes are fitted on.
        test: other images, which they are read on.
        factors: names among `test.factors`, or "label"; all of them by default.
        layers: layers whose stream, x_l and y_l are read; all by default.
        seed: of permutations, of the images that choose the shrinkage, and of intervals.
        progress: show progress bars.

    Raises:
        InputError: an unknown factor or layer, labels that are not known, a factor with one value,
            or with fewer than 10 training images of a value, images of another size, or activations
            that are NaN or infinite.
    """
    check_prepared(vit, train)
    check_prepared(vit, test)
    names = _known_factors(factors, train, test)
    chosen = layer_list(range(vit.cfg.n_layers) if layers is None else layers, vit.cfg.n_layers)
    known, asked = train.factors or {}, test.factors or {}
    given = {
        name: _Values.of(name, known[name].numpy(), asked[name].numpy())
        for name in _shared_factors(train, test)
    }
    fitted, train_labels = probe_rows(vit, train, chosen, progress=progress)
    shown, labels = probe_rows(vit, test, chosen, progress=progress)
    values = dict(given)
    if LABEL in names:
        values[LABEL] = _Values.of(LABEL, train_labels, labels)

    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(train)) for _ in range(PERMUTATIONS)]
    read: dict[tuple[str, Place | None], _Read] = {}
    for place in tqdm(list(fitted), "probes", disable=not progress):
        rows = Discriminant(fitted[place], seed)
        for name in names:
            read[name, place] = _Read.by(rows, values[name], shown[place], orders)
    if LABEL in names and given:
        one_hot = Discriminant(
            np.hstack([each.one_hot(each.train) for each in given.values()]), seed
        )
        test_rows = np.hstack([each.one_hot(each.test) for each in given.values()])
        read[LABEL, None] = _Read.by(one_hot, values[LABEL], test_rows, [])
    readings = dict(zip(read, _readings(list(read.values()), seed), strict=True))
    return Probes(
        [
            Probe(name, place, readings[name, place], *each.permuted, each.shrinkage)
            for (name, place), each in read.items()
            if place is not None
        ],
        {name: values[name].floors(readings.get((name, None))) for name in names},
        chosen,
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
    """A factor of the training and of the test images, as numbers from 0."""

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
class _Read:
    """What a probe says of every test image, and what probes of permuted values come to."""

    correct: np.ndarray
    loss: np.ndarray
    permuted: tuple[float, float]
    shrinkage: float

    @classmethod
    def by(
        cls, rows: Discriminant, values: _Values, shown: np.ndarray, orders: list[np.ndarray]
    ) -> _Read:
        def outcome(train: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
            guess, shrinkage = rows.probe(train, values.n, shown)
            loss = -guess[np.arange(len(shown)), values.test]
            return (guess.argmax(1) == values.test).astype(float), loss, shrinkage

        floors = [outcome(values.train[order])[:2] for order in orders]
        means = np.array(floors).mean((0, 2)) if floors else np.full(2, np.nan)
        correct, loss, shrinkage = outcome(values.train)
        return cls(correct, loss, (float(means[0]), float(means[1])), shrinkage)


def _readings(read: list[_Read], seed: int) -> list[Reading]:
    top1, loss = (
        mean_intervals(np.stack(each, axis=1), seed)
        for each in ([r.correct for r in read], [r.loss for r in read])
    )
    n = len(read[0].correct)
    return [Reading(*each, n) for each in zip(top1, loss, strict=True)]


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
