"""Which features move one class? They are ranked by direct effect on one half of the images, and
steered on the other half.

The number that is explained is the contrast: the class' logit minus the mean of the other classes'
logits (softmax ignores what all classes share). With attention held and the MLPs cut
(`vit_clt.hooks.FrozenPass`) feature i of layer s adds to it, to first order,

    effect(s, i) = sum over rows of z_{s,i} * sum over l of <W_dec[s->l]_i, G_l>

where G_l is the gradient of the contrast at y_l, all norms differentiated. Features are ranked by
the size of its mean over images. Taking a feature away is not a small change, and later features
respond to it. So the first features of the ranking are then suppressed and doubled in the running
model with error nodes, everything downstream recomputed, and compared with random features of the
same layers that fire about as often. All of it is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.features.effects import contrast_effects
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.stats.halves import halves
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.analysis.stats.names import Texts
from vit_clt.analysis.stats.ranks import MIN_SOURCES, row_agreement
from vit_clt.analysis.steering.scaled_features import SCALES, scaled_features
from vit_clt.analysis.steering.search_result import SteeringSearch
from vit_clt.analysis.steering.versions import Feature
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, Rows, check_fits
from vit_clt.hooks.steering import check_rows
from vit_clt.readouts.class_names import class_number
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder


@torch.no_grad()
def steering_search(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    zs: ZeroShot,
    target: str | int,
    *,
    top: int = 10,
    tokens: Rows = "all",
    n_random: int = 3,
    names: Texts | None = None,
    clt_name: str = "in memory",
    seed: int = 0,
    progress: bool = False,
) -> SteeringSearch:
    """Rank all features by their direct effect on a class, and measure the first of them.

    A random half of the images is used for the ranking and the other half for steering, so that
    features are not measured on the images that they were chosen on.

    Args:
        vit: the teacher, with no hooks attached; it must pool the class token.
        clt: its transcoder.
        data: at least four images; with labels accuracy and loss are measured too.
        zs: the zero-shot classifier, of at least two classes.
        target: the class, by name or number (`class_number`).
        top: number of features that are steered.
        tokens: token rows whose codes count in the ranking and are steered.
        n_random: number of random features steered beside each.
        names: names of features (`FeatureNames.texts`), which titles and tables show.
        clt_name: what the CLT is called in captions.
        seed: seed of the halves, the random features, permutations and bootstraps.
        progress: show progress bars.

    Raises:
        InputError: the class is unknown, an argument is out of range, there are too few images, no
            feature fires, `vit` has a hook or does not pool the class token, a label has no class
            name, or the CLT is of another model.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    check_fits(vit, clt)
    check_rows(tokens, vit.cfg.rows)
    label = class_number(zs.class_names, target)
    if len(zs.class_names) < 2:
        raise InputError(
            "class_names", "has 1 class; expected at least 2, as classes are compared."
        )
    for name, number in (("top", top), ("n_random", n_random)):
        if number < 1:
            raise InputError(name, f"is {number}; expected at least 1.")
    if len(data) < 4:
        raise InputError("data", f"has {len(data)} images; expected at least 4, two in each half.")
    ranking, measuring = halves(data, seed)
    rng = np.random.default_rng(seed)

    effects, activity = contrast_effects(vit, clt, ranking, zs, label, tokens, progress)
    n_layers, n_features = effects.shape
    n_searched = sum(int((layer.fired > 0).sum()) for layer in activity.values())
    if not n_searched:
        raise InputError(f"no feature is active on these rows of {data.name}; expected some.")
    # an effect may be 0 (on rows that nothing reads), but a silent feature is never a candidate
    fires = np.stack([activity[s].fired > 0 for s in range(n_layers)])
    order = np.argsort(np.where(fires, -np.abs(effects), 1), axis=None, kind="stable")
    ranked = order[: min(top, n_searched)]
    candidates: list[Feature] = [divmod(int(at), n_features) for at in ranked]
    used: dict[int, set[int]] = {s: {i for t, i in candidates if t == s} for s in range(n_layers)}
    steered: list[tuple[int, str, Feature]] = []
    for rank, (s, i) in enumerate(candidates):
        steered.append((rank, "found", (s, i)))
        for other in activity[s].alike(i, n_random, rng, used[s]):
            used[s].add(other)
            steered.append((rank, "random", (s, other)))

    before, changes = scaled_features(
        vit, clt, measuring, zs, label, [feature for _, _, feature in steered], tokens, progress
    )
    samples = bootstrap_means(changes.reshape(len(changes), -1), seed)
    samples = samples.reshape(len(samples), *changes.shape[1:])
    beside = [
        [at for at, (other, role, _) in enumerate(steered) if other == rank and role == "random"]
        for rank in range(len(candidates))
    ]
    rows: list[dict[str, Any]] = []
    for at, (rank, role, (s, i)) in enumerate(steered):
        for j, scale in enumerate(SCALES):
            row: dict[str, Any] = {"candidate": rank, "role": role, "layer": s, "feature": i}
            row |= {"rate": activity[s].rate(i), "image_rate": activity[s].image_rate(i)}
            row |= {"cls_rate": activity[s].cls_rate(i)}
            row |= {"effect": float(effects[s, i]), "scale": scale}
            row["predicted"] = (scale - 1) * row["effect"]
            for m, measure in enumerate(before):
                change = Interval.of(changes[:, at, j, m].mean(), samples[:, at, j, m])
                row |= change.columns(measure)
                if role == "found":
                    # means are linear: draws of a difference are differences of draws
                    draws = samples[:, at, j, m] - samples[:, beside[rank], j, m].mean(1)
                    beyond = change - changes[:, beside[rank], j, m].mean()
                    row |= Interval.of(beyond, draws).columns(f"{measure}_beyond")
            rows.append(row)
    frame = pd.DataFrame(rows)
    candidate_columns = [at for at, (_, role, _) in enumerate(steered) if role == "found"]
    suppressed = frame[(frame["role"] == "found") & (frame["scale"] == SCALES[0])]
    predicted, measured = (suppressed[name].to_numpy() for name in ("predicted", "contrast"))
    contrast_draws = samples[:, candidate_columns, 0, 0]
    agreement = None
    if len(candidates) >= MIN_SOURCES:
        agreement = row_agreement(
            predicted, measured, effect_draws=contrast_draws, seed=seed
        ).spearman
    n_rows = sum(layer.n_rows for layer in activity.values())
    return SteeringSearch(
        frame=frame,
        baseline=before,
        agreement=agreement,
        slope=_slope(predicted, measured, contrast_draws),
        request=str(target),
        target=zs.class_names[label],
        label=label,
        tokens=tokens,
        l0=sum(float(layer.fired.sum()) for layer in activity.values()) / n_rows,
        n_searched=n_searched,
        n_ranked=len(ranking),
        n=len(measuring),
        data=data.name,
        split=data.split,
        subject=Subject.of(vit, clt, clt_name),
        readout=zs.name,
        seed=seed,
        names=names or {},
    )


def _slope(
    predicted: Float[np.ndarray, " feature"],
    measured: Float[np.ndarray, " feature"],
    draws: Float[np.ndarray, "draw feature"],
) -> Interval:
    power = float(predicted @ predicted)
    if not power:
        return Interval(float("nan"))
    return Interval.of(float(measured @ predicted) / power, draws @ predicted / power)
