"""D13, the measures of the CLT's features, beside neurons, components and an untrained CLT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vit_clt.analysis.auditing.diagnostics import Diagnostic
from vit_clt.analysis.auditing.surrogate_check import THIS_CLT
from vit_clt.analysis.measures.scores import FeatureScores
from vit_clt.analysis.measures.study import NEURONS, UNTRAINED, feature_scores
from vit_clt.analysis.stats.halves import random_images
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.transcoder.model import CrossLayerTranscoder

MOST_IMAGES = 128
"""The most images of the check, and of those it is fitted on, which bounds its cost."""


def check_features(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    fit: ImageData | None,
    others: Mapping[str, CrossLayerTranscoder],
    *,
    seed: int = 0,
    progress: bool = False,
) -> Diagnostic:
    """Measure the features on at most `MOST_IMAGES` random images, and make D13 of it.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        fit: other labelled images, for probes and class AUCs; none without them.
        others: by name, other CLTs of the ViT; those of this one's shape and sparsifier are what
            features are matched with.
        seed: seed of the choice of images and of all draws.
        progress: show progress bars.
    """
    alike = {
        name: other
        for name, other in others.items()
        if other.config.sparsifier == clt.config.sparsifier
        and other.config.n_features == clt.config.n_features
        and other.config.cross_layer
    }
    return feature_diagnostic(
        feature_scores(
            vit,
            {THIS_CLT: clt},
            random_images(data, MOST_IMAGES, seed),
            fit,
            seed_clts=alike,
            seed=seed,
            progress=progress,
        )
    )


def feature_diagnostic(scores: FeatureScores) -> Diagnostic:
    """D13: are the CLT's features better than those of the ViT itself, and than untrained ones?"""
    answers = []
    for measure, title in (
        ("monosemanticity", "monosemanticity"),
        ("morans_i", "Moran's I"),
        ("class_auc", "class AUC"),
        ("stability", "stability over seeds"),
    ):
        value, *rest = (scores.mean(name, measure) for name in (THIS_CLT, NEURONS, UNTRAINED))
        if value == value:
            beside = ", ".join(
                f"{name} {other:.2f}"
                for name, other in zip((NEURONS, UNTRAINED), rest, strict=True)
                if other == other
            )
            floor = f"floor {scores.floor(THIS_CLT, measure):.2f}"
            told = "; ".join(filter(None, (beside, floor)))
            answers.append(f"{title} {value.text('.2f')}, {told}")
    for k in scores.ks[:1]:
        found = {name: scores.probe(name, k)["auc"] for name in (THIS_CLT, NEURONS, UNTRAINED)}
        listed = ", ".join(f"{name} {auc:.2f}" for name, auc in found.items())
        answers.append(f"AUC of probes of one unit: {listed}")
    return Diagnostic(
        "D13",
        "Are its features any good?",
        f"Every feature by itself (feature scores), teacher trajectory, {scores.data}, N = "
        f"{scores.n}, {scores.silent(THIS_CLT):.0%} of features silent on them. "
        + " ".join(f"{note}." for note in scores.notes()),
        "Features that are no more of one kind, no more local, no better signs of a class than the "
        "ViT's own neurons or than those of an untrained CLT, and others with another seed. A good "
        "answer says nothing of C.",
        ". ".join(f"{each[0].upper()}{each[1:]}" for each in answers) + ".",
        scores.shown(),
        (scores.figure(),),
        tuple(replace(metric, name=f"D13_{metric.name}") for metric in scores.metrics()),
    )
