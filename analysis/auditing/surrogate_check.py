"""D12, surrogate causality: the one diagnostic that intervenes in the ViT and in the CLT alike."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

from vit_clt.analysis.auditing.diagnostics import Diagnostic
from vit_clt.analysis.causal.surrogate_effects import FIRST_ORDER
from vit_clt.analysis.causal.surrogate_result import SurrogateCausality
from vit_clt.analysis.causal.surrogate_study import surrogate_causality
from vit_clt.analysis.stats.halves import random_images
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

MOST_IMAGES = 500
"""The most images of the check, which bounds its cost."""
THIS_CLT = "this CLT"


def check_surrogate(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    rivals: Iterable[tuple[str, CrossLayerTranscoder]],
    *,
    seed: int = 0,
    progress: bool = False,
) -> Diagnostic:
    """Measure surrogate causality on at most `MOST_IMAGES` random images, and make D12 of it.

    MLP outputs are set to their mean on all rows, in each layer alone and in ranges.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        classifier: the readout.
        rivals: by name, other transcoders of the teacher's shape, whichever model they are of.
        seed: seed of the choice of images and of all draws.
        progress: show progress bars.
    """
    others = []
    for name, rival in rivals:
        # one of another model is a floor; the caller's own keeps its teacher
        unbound = copy.copy(rival)
        unbound.forget_teacher()
        others.append((name, unbound))
    study = surrogate_causality(
        vit,
        clt,
        random_images(data, MOST_IMAGES, seed),
        classifier,
        rivals=others,
        name=THIS_CLT,
        seed=seed,
        progress=progress,
    )
    return surrogate_diagnostic(study)


def surrogate_diagnostic(study: SurrogateCausality) -> Diagnostic:
    """D12: do ablations change the ViT with the CLT in its MLPs' place as they change the ViT?"""
    alone = study.comparison(sets="single").agreement
    first_order = study.agreement("pearson", model=FIRST_ORDER, sets="single").value
    pearson, error = alone["pearson"], alone["relative_error"].value
    answers = [
        f"{name} {study.agreement('pearson', model=name, sets='single').value.text('.2f')}"
        for name in study.surrogates[1:]
    ]
    # those in nats are the effects themselves, one for every set of layers
    metrics = [
        replace(metric, name=f"D12_{metric.name}")
        for metric in study.metrics()
        if metric.unit == "fraction"
    ]
    return Diagnostic(
        "D12",
        "Do ablations change the replaced model as they change the model?",
        "MLP outputs at their mean, all rows, in the ViT and in the ViT with every MLP replaced by "
        "the CLT (stream inputs): each layer alone, ranges, and both; change of every image's loss "
        f"and logits, {study.data}, N = {study.n}. " + " ".join(f"{n}." for n in study.notes()),
        "A Pearson correlation over single layers that effects permuted over layers reach, or that "
        "linear maps, a CLT of an untrained model or the ViT's own first-order effects (which need "
        "no CLT) reach too; a relative error near 1, which is that of predicting no effect; a "
        "slope far from 1. A good answer is of the whole CLT: it does not say that C ranks layers.",
        f"Total effects of single layers on the loss: Pearson {pearson.value.text('.2f')}, 97.5 % "
        f"of permuted effects below {pearson.floor.high:.2f}, first order {first_order:.2f}"
        + "".join(f", {answer}" for answer in answers)
        + f"; relative error {error.text('.2f')}.",
        study.shown(),
        (study.figure(),),
        tuple(metrics),
    )
