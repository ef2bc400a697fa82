"""Effect scores E(s->l): what silencing the features of a source changes in the replaced ViT.

Every MLP is replaced at all rows by y^_l, with the error node y_l - y^_l held, so that the
unaltered model is the ViT bit for bit. On the *ablated* rows the features of source s are set to a
fill, and the change is measured on the *scored* rows of y_l, and at the output:

    E(s->l)      = E||y_l' - y_l||^2 / E||y_l - mean y_l||^2
    E(s->output) = E[loss' - loss],  and the same of the label's logit less the others' mean

over images (and scored rows, with the mean over images at the same position), on the scale of
`vit_clt.analysis.causal.study`. For **total** effects the codes of later layers answer to the
altered stream. For **direct** ones they are held: y_l' - y_l is the change of the term alone,
(fill - z_s) W_dec[s->l], and the output sees these changes, of all targets, in the stream that the
final LayerNorm reads. The form is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from vit_clt.analysis.causal.targets import TargetEffects
from vit_clt.analysis.contributions.parts import NEGLIGIBLE
from vit_clt.analysis.silencing.changes import Changes, Silenced
from vit_clt.analysis.silencing.effects import FirstOrderError, Reading, SilencingEffects
from vit_clt.analysis.silencing.feature_scores import FeatureEffects
from vit_clt.analysis.silencing.measure import BatchEffects, Measurement
from vit_clt.analysis.silencing.scores import EffectScores
from vit_clt.choices import EffectOrder, EffectPath, Fill, TokenKind, check_choice
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, layer_list, token_rows
from vit_clt.hooks.interventions import check_unhooked
from vit_clt.hooks.steering import check_feature
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder


class SilencingOptions(TypedDict, total=False):
    """Arguments by name that all effects of this room share."""

    tokens: TokenKind
    """Kind of rows of y_l that are scored, "cls" by default, as in C(s->l)."""
    ablated: TokenKind
    """Kind of rows on which codes are silenced, "all" by default, as a CLS row reads the patch rows
    of lower layers through attention."""
    fill: Fill
    """What silenced codes are set to: each feature's "mean" over the images at the same position
    (the default), the codes of another image, drawn by the seed ("resample"), or "zero"."""
    path: EffectPath
    """Whether the codes of later layers answer ("total", the default) or are held ("direct")."""
    order: EffectOrder
    """"exact" (the default): one altered pass for each silencing. "first": to first order, one pass
    and two gradients for all of them, at the output of the loss alone. Direct effects on y are
    exact in both."""
    checked: int
    """Images on which first-order effects are also measured exactly, 64 by default; 0 for none."""
    seed: int
    """Seed of donors, random probes, checked images and bootstraps; 0 by default."""
    progress: bool
    """Show progress bars; not by default."""


def effect_scores(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    classifier: Classifier | None = None,
    **options: Unpack[SilencingOptions],
) -> EffectScores:
    """E(s->l) and E(s->output): all features of each source layer silenced, one layer at a time.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder; of a per-layer one too, whose features write to their own layer alone.
        data: images, labelled if there is a classifier.
        classifier: the readout; without it there is no effect on the output.
        **options: tokens, ablated, fill, path, order, checked, seed and progress
            (`SilencingOptions`).

    Raises:
        InputError: an argument is out of range, there is one image or one class, the model lacks a
            kind of rows, labels have no names, `vit` has a hook, activations are NaN or infinite,
            or the CLT belongs to another model.
    """
    silenced = [Silenced(s) for s in range(vit.cfg.n_layers)]
    effects = _effects(vit, clt, as_image_data(data), classifier, silenced, **options)
    return EffectScores(
        matrix=torch.from_numpy(effects.on_targets.matrix),
        kind="effect",
        reduce="ratio_of_means",
        tokens=effects.tokens,
        n_images=effects.n,
        data=effects.data,
        l0=effects.l0,
        seed=effects.seed,
        effects=effects,
    )


def feature_effects(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    features: Iterable[tuple[int, int]],
    classifier: Classifier | None = None,
    **options: Unpack[SilencingOptions],
) -> FeatureEffects:
    """The same effects of single features, silenced one at a time.

    With fill "mean" what each feature writes on the mean is kept: targets x rows x d_model numbers
    a feature.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: images, labelled if there is a classifier.
        features: layer and number of each feature; negative layers count from the end.
        classifier: the readout; without it there is no effect on the output.
        **options: as of `effect_scores`.

    Raises:
        InputError: as of `effect_scores`, or a feature does not exist, or there is none.
    """
    silenced = []
    for layer, feature in features:
        [layer] = layer_list(layer, clt.config.n_layers)
        check_feature(layer, feature, clt.config.n_features)
        silenced.append(Silenced(layer, feature))
    if not silenced:
        raise InputError("features", "is empty; expected at least one (layer, feature).")
    data = as_image_data(data)
    return FeatureEffects(_effects(vit, clt, data, classifier, silenced, **options))


def _effects(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier | None,
    silenced: Sequence[Silenced],
    *,
    tokens: TokenKind = "cls",
    ablated: TokenKind = "all",
    fill: Fill = "mean",
    path: EffectPath = "total",
    order: EffectOrder = "exact",
    checked: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> SilencingEffects:
    check_fits(vit, clt)
    check_unhooked(vit)
    check_prepared(vit, data)
    for kind in (tokens, ablated):
        token_rows(kind, vit.cfg.rows)
    check_choice("fill", fill, get_args(Fill))
    check_choice("path", path, get_args(EffectPath))
    check_choice("order", order, get_args(EffectOrder))
    if checked < 0:
        raise InputError("checked", f"is {checked}; expected at least 0 images.")
    n, n_layers = len(data), vit.cfg.n_layers
    probes = order == "first" and path == "total" and n_layers > 1
    if n < (fewest := max(2, n_layers - 1 if probes else 0)):
        raise InputError(
            "data",
            f"has {n} {'image' if n == 1 else 'images'}; expected at least {fewest}, as effects "
            "are relative to how images differ"
            + (" and each target has its random probes." if probes else "."),
        )
    if classifier is not None and len(classifier.class_names) < 2:
        raise InputError(
            "class_names", "has 1 class; expected at least 2, as its logit is read beside others."
        )
    changes = Changes(
        vit,
        clt,
        data,
        silenced,
        tokens=tokens,
        ablated=ablated,
        fill=fill,
        seed=seed,
        progress=progress,
    )
    measurement = Measurement(vit, clt, data, classifier, changes, tokens, path, seed)
    # the targets above layer 0 are dealt out as evenly as can be; layer 0 needs no probe
    dealt = 1 + np.arange(n) % max(1, n_layers - 1) if n_layers > 1 else np.zeros(n, int)
    probed = np.random.default_rng(seed).permutation(dealt)
    weights = n / np.maximum(1, np.bincount(probed, minlength=n_layers))
    parts: list[BatchEffects] = []
    with Progress(total=n, desc="silencing", unit=" images", disable=not progress) as bar:
        for start in range(0, n, data.batch_size):
            batch = range(start, min(start + data.batch_size, n))
            if order == "exact":
                parts.append(measurement.exact(batch))
            else:
                here = probed[batch.start : batch.stop]
                parts.append(measurement.first_order(batch, here, weights))
            bar.update(len(batch))
    spread, power = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("spread", "power")
    )
    spread[:, spread.sum(0) <= NEGLIGIBLE * power.sum(0)] = np.nan
    on_targets = TargetEffects(np.concatenate([part.moved for part in parts]), spread)
    on_output: dict[Reading, np.ndarray] = {
        name: np.concatenate([part.on_output[name] for part in parts])
        for name in parts[0].on_output
    }
    error = None
    if order == "first" and checked:
        error = _first_order_error(measurement, on_targets, on_output, min(checked, n))
    sizes = [len(part.moved) for part in parts]
    return SilencingEffects(
        silenced=list(silenced),
        on_targets=on_targets,
        on_output=on_output,
        path=path,
        order=order,
        error=error,
        tokens=tokens,
        ablated=ablated,
        fill=fill,
        readout=None if classifier is None else classifier.name,
        model=vit.cfg.model,
        data=data.name,
        split=data.split,
        n=n,
        l0=float(np.average([part.l0 for part in parts], weights=sizes)),
        seed=seed,
    )


def _first_order_error(
    measurement: Measurement,
    on_targets: TargetEffects,
    on_output: dict[Reading, np.ndarray],
    n: int,
) -> FirstOrderError:
    data = measurement.data
    chosen = np.random.default_rng([measurement.seed, 1]).permutation(len(data))[:n]
    batches = np.split(chosen, range(data.batch_size, n, data.batch_size))
    parts = [measurement.exact(batch.tolist()) for batch in batches]
    moved = np.concatenate([part.moved for part in parts])
    exact_y = TargetEffects(moved, on_targets.spread[chosen]).matrix
    # what a target's own term adds is exact in both
    layers = np.array([each.layer for each in measurement.silenced])
    compared = np.arange(len(exact_y))[:, None] > layers
    outputs: dict[Reading, float] = {}
    for name, values in on_output.items():
        exact = np.concatenate([part.on_output[name] for part in parts]).mean(0)
        outputs[name] = _relative(values[chosen].mean(0), exact)
    return FirstOrderError(n, _relative(on_targets.matrix[compared], exact_y[compared]), outputs)


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    defined = np.isfinite(exact) & np.isfinite(found)
    size = float(np.linalg.norm(exact[defined]))
    return float(np.linalg.norm((found - exact)[defined])) / size if size else float("nan")
