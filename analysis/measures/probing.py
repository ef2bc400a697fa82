"""Sparse probing: do a few units tell a class of images from the others?

For each class, the k units with the largest |mean over its images - mean over the others| on
training images are chosen, as SAEBench does (Karvonen et al. 2025, arXiv 2503.09532). Logistic
regression (L2, C = 1, classes weighted to count alike) is fitted on their image-level activations,
in units of their standard deviation, and read on held-out images: AUC and balanced accuracy, of
both of which chance is 0.5. The floor replaces each chosen unit by a random one of equal rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vit_clt.analysis.stats.auc import auc, ranks
from vit_clt.analysis.stats.equal_rate import equal_rate

KS = (1, 5, 20)
"""Numbers of units that are read together."""


@dataclass(frozen=True)
class LabelledActivations:
    """Image-level activations of a layer's units, with the classes of the images."""

    values: Float[np.ndarray, "image unit"]
    labels: Int[np.ndarray, " image"]


@dataclass(frozen=True)
class SparseProbe:
    """A class read from k units."""

    label: int
    k: int
    auc: float
    accuracy: float
    """Balanced: the mean of the share of the class and of the share of the others that are right.
    """
    auc_random: float
    """Of random units of equal rate, one for each; NaN where too few units fire."""
    accuracy_random: float


def sparse_probes(
    train: LabelledActivations, test: LabelledActivations, seed: int = 0, ks: Sequence[int] = KS
) -> list[SparseProbe]:
    """The probes of every class that both sets of images show, for each k.

    Args:
        train: images that units are chosen and probes fitted on.
        test: other images, which the probes are read on.
        seed: seed of the random units.
        ks: numbers of units.
    """
    rng = np.random.default_rng(seed)
    rates = (train.values != 0).sum(0)
    probes = []
    for label in shown_in_both(train.labels, test.labels):
        inside, truth = train.labels == label, test.labels == label
        difference = np.abs(train.values[inside].mean(0) - train.values[~inside].mean(0))
        ranked = np.argsort(-difference, kind="stable")
        for k in ks:
            chosen = ranked[:k]
            found = _fit_and_read(train.values, inside, test.values, truth, chosen)
            random = _random_units(rates, chosen, rng)
            floors = (float("nan"), float("nan"))
            if random is not None:
                floors = _fit_and_read(train.values, inside, test.values, truth, random)
            probes.append(SparseProbe(label, k, *found, *floors))
    return probes


def full_probe(train: LabelledActivations, test: LabelledActivations) -> tuple[float, float]:
    """Mean AUC and balanced accuracy over classes of probes that read every column."""
    everything = np.arange(train.values.shape[1])
    readings = [
        _fit_and_read(
            *(train.values, train.labels == label),
            *(test.values, test.labels == label, everything),
        )
        for label in shown_in_both(train.labels, test.labels)
    ]
    area, accuracy = np.mean(readings, axis=0)
    return float(area), float(accuracy)


def shown_in_both(
    train: Int[np.ndarray, " image"], test: Int[np.ndarray, " test_image"]
) -> list[int]:
    """The classes that some but not all images of both sets are of, -1 (unknown) left out."""
    shown, shown_on_test = set(train.tolist()), set(test.tolist())
    if len(shown) < 2 or len(shown_on_test) < 2:
        return []
    return sorted((shown & shown_on_test) - {-1})


def _random_units(
    rates: Int[np.ndarray, " unit"], chosen: Int[np.ndarray, " k"], rng: np.random.Generator
) -> Int[np.ndarray, " k"] | None:
    free = np.setdiff1d(np.flatnonzero(rates), chosen)
    if len(free) < len(chosen):
        return None
    drawn: list[int] = []
    for unit in chosen.tolist():
        drawn += equal_rate(rates, unit, np.setdiff1d(free, drawn), 1, rng)
    return np.array(drawn)


def _fit_and_read(
    train: Float[np.ndarray, "image unit"],
    inside: np.ndarray,
    test: Float[np.ndarray, "test_image unit"],
    truth: np.ndarray,
    units: Int[np.ndarray, " k"],
) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    x = train[:, units].astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    fit = LogisticRegression(class_weight="balanced", max_iter=1000)
    fit.fit((x - mean) / scale, inside)
    scores = fit.decision_function((test[:, units] - mean) / scale)
    [[area]] = auc(truth[None], ranks(scores[:, None]))
    right = (scores > 0) == truth
    return float(area), float((right[truth].mean() + right[~truth].mean()) / 2)
