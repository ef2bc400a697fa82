"""Steering curves: how class probabilities change as features are turned up or down.

Every MLP is replaced by the CLT with error nodes (`vit_clt.hooks.steer`), so that unedited codes
give the model itself and each number is the effect of the edit alone, with everything downstream
recomputed. The features are compared with random ones of the same layers that fire about as often
and are steered alike. All of it is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vit_clt.analysis.features.activity import feature_activity
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.stats.names import Texts
from vit_clt.analysis.stats.query import check_query
from vit_clt.analysis.steering.curve_result import UNSTEERED, SteeringCurve
from vit_clt.analysis.steering.readings import SteeredReader, known_labels
from vit_clt.analysis.steering.versions import STEERED, Feature, steered_versions
from vit_clt.choices import EditKind, check_choice
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import Edit, HookedViT, Rows, SteeredPass, check_fits
from vit_clt.hooks.steering import check_edits, check_rows
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier
from vit_clt.readouts.class_names import class_number
from vit_clt.transcoder.model import CrossLayerTranscoder

STRENGTHS: dict[EditKind, tuple[float | int, ...]] = {
    "clamp": (-2, -1, 0, 1, 2, 4, 6),
    "scale": (-1, 0, 1, 2, 4),
}


@torch.no_grad()
def steering_curve(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    classifier: Classifier,
    features: Feature | Sequence[Feature],
    *,
    kind: EditKind = "clamp",
    values: Sequence[float | int] | None = None,
    tokens: Rows = "all",
    only_active: bool = False,
    query: Sequence[int] | None = None,
    target: str | int | None = None,
    n_random: int = 5,
    names: Texts | None = None,
    clt_name: str = "in memory",
    seed: int = 0,
    progress: bool = False,
) -> SteeringCurve:
    """Class probabilities at several strengths of some features, compared with random features.

    A clamp is in units of the feature's typical activation: the mean of z where it is active, over
    these token rows of all images of `data` (teacher trajectory). Probabilities are the softmax at
    the model's own logit scale; intervals are bootstraps over the images measured, NaN for one.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: images; with labels accuracy and loss are measured too.
        classifier: the readout.
        features: (layer, feature), one or several that are steered together.
        kind: "clamp" to strength times the typical activation, or "scale" by the strength.
        values: the strengths; default: -2 to 6 (clamp), -1 to 4 (scale).
        tokens: token rows that are steered.
        only_active: clamp only where the feature is active.
        query: numbers of the images of `data` that are measured; default: all.
        target: class that is drawn and compared with the random features, by name or number
            (`class_number`); default: the one whose probability changes most.
        n_random: number of random controls, each with as many features of the same layers and of
            about the same firing rate.
        names: names of features (`FeatureNames.texts`), which titles and tables show.
        clt_name: what the CLT is called in captions.
        seed: seed of the controls and of the bootstraps.
        progress: show progress bars.

    Raises:
        InputError: a feature, image, class or strength does not exist, a feature never fires on
            these rows, `vit` has a hook, a label has no class name, or the CLT is of another model.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    check_fits(vit, clt)
    label = None if target is None else class_number(classifier.class_names, target)
    together = [features] if isinstance(features, tuple) else list(features)
    _check(vit, clt, together, kind, tokens, n_random)
    strengths = [float(v) for v in (STRENGTHS[kind] if values is None else values)]
    if not strengths or len(set(strengths)) < len(strengths) or not np.isfinite(strengths).all():
        raise InputError(
            "values", f"are {strengths}; expected different finite numbers, at least one."
        )
    strengths.sort()
    measured = list(range(len(data))) if query is None else list(query)
    check_query(measured, data)

    layers = sorted({s for s, _ in together})
    activity = feature_activity(vit, clt, data, layers, tokens=tokens, progress=progress)
    versions = steered_versions(activity, together, n_random, seed, data.name)
    edits = {
        (version.name, strength): version.edits(kind, strength, tokens, only_active)
        for version in versions
        for strength in strengths
    }
    clean: list[Tensor] = []
    steered: dict[tuple[str, float], list[Tensor]] = {at: [] for at in edits}
    labels: list[Tensor] = []
    total = len(measured) * len(edits)
    with Progress(total=total, desc="steering", unit=" images", disable=not progress) as bar:
        for start in range(0, len(measured), data.batch_size):
            images, batch_labels = data.batch(measured[start : start + data.batch_size])
            run = SteeredPass(vit, clt, images.to(clt.b_dec.device))
            clean.append(classifier.logits(run.embeddings.double()).cpu())
            labels.append(batch_labels)
            for at, version_edits in edits.items():
                steered[at].append(classifier.logits(run.steered(version_edits).double()).cpu())
                bar.update(len(images))
    reader = SteeredReader(
        torch.cat(clean), known_labels(classifier, torch.cat(labels)), classifier.class_names, seed
    )
    parts = [reader.rows(torch.cat(clean), version=UNSTEERED, features="", raw="")]
    for version in versions:
        for strength in strengths:
            others = versions[1:] if version.name == STEERED else []
            parts.append(
                reader.rows(
                    torch.cat(steered[version.name, strength]),
                    [torch.cat(steered[other.name, strength]) for other in others],
                    version=version.name,
                    features=version.text(),
                    raw=", ".join(f"{v:.4g}" for v in version.values(kind, strength)),
                    strength=strength,
                )
            )
    return SteeringCurve(
        frame=pd.concat(parts, ignore_index=True),
        steered=versions[0],
        controls=versions[1:],
        kind=kind,
        strengths=strengths,
        tokens=tokens,
        only_active=only_active,
        target=label,
        query=[] if query is None else measured,
        class_names=classifier.class_names,
        readout=classifier.name,
        data=data.name,
        split=data.split,
        subject=Subject.of(vit, clt, clt_name),
        l0=float(np.mean([layer.fired.sum() / layer.n_rows for layer in activity.values()])),
        n=len(measured),
        n_typical=len(data),
        seed=seed,
        names=names or {},
    )


def _check(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    features: Sequence[Feature],
    kind: EditKind,
    tokens: Rows,
    n_random: int,
) -> None:
    check_choice("kind", kind, get_args(EditKind))
    if n_random < 1:
        raise InputError(
            "n_random", f"is {n_random}; expected at least 1 random feature beside each."
        )
    check_rows(tokens, vit.cfg.rows)
    edits = [Edit(s, i, "scale", 1, tokens) for s, i in features]
    check_edits(clt, edits, layers=range(vit.cfg.n_layers), rows=vit.cfg.rows)
