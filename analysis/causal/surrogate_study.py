"""Surrogate causality: do interventions change a ViT with a CLT as they change the ViT?

The same interventions are made in the ViT and in its surrogate, the ViT with every MLP replaced by
a CLT (`vit_clt.hooks.passes.surrogate`). One and the same tensor is written in both, the ViT's own
mean or its output on another image: an intervention is what it writes, so that both models hold
the same values there, and a bias of the surrogate counts as the error that it is. Where layers are
overwritten on all rows nothing of the CLT is left in them: the more MLPs a set holds the more alike
the two models are by construction, and single layers ask most of the CLT.

Beside the CLT stand other transcoders in the MLPs' place, such as a per-layer one, or each MLP's
best linear map, and the ViT's first-order effects, which need no CLT at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vit_clt.analysis.causal.effect_agreement import effect_agreement
from vit_clt.analysis.causal.interventions import Intervention, layers_kind
from vit_clt.analysis.causal.surrogate_effects import FIRST_ORDER, VIT, gather_effects
from vit_clt.analysis.causal.surrogate_result import ALL_SETS, Compared, SurrogateCausality
from vit_clt.analysis.stats.intervals import mean_intervals
from vit_clt.analysis.stats.names import LayerSet, layer_sets
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, layer_list
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder


@torch.no_grad()
def surrogate_causality(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    classifier: Classifier | None,
    *,
    interventions: Sequence[Intervention] = (Intervention(),),
    sets: Iterable[Iterable[int]] | None = None,
    rivals: Iterable[tuple[str, CrossLayerTranscoder]] = (),
    name: str = "CLT",
    seed: int = 0,
    progress: bool = False,
) -> SurrogateCausality:
    """Compare effects of interventions in the surrogate with those in the ViT.

    Args:
        vit: the ViT, with no hooks attached.
        clt: its transcoder.
        data: labelled images.
        classifier: the readout, of at least two classes.
        interventions: what is done to each set of layers; by default all rows of MLP outputs are
            set to their mean. `every_intervention(vit)` lists all.
        sets: sets of layers; by default `layer_sets(n_layers)`, each layer alone and ranges. A set
            whose overwritten rows cannot reach the output is left out.
        rivals: by name, further transcoders that take the place of all MLPs: per-layer ones, or
            the linear maps of `ridge_transcoder(vit, images, cross_layer=False)`.
        name: name of the CLT.
        seed: seed of donors, permutations and bootstraps.
        progress: show progress bars.

    Raises:
        InputError: there is no classifier, one class or one image, a transcoder belongs to another
            model, two have one name, an intervention or a layer is out of range, labels have no
            names, `vit` has a hook, or activations are NaN or infinite.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    if classifier is None:
        raise InputError("classifier", "is None; effects are read as logits, expected a readout.")
    if len(classifier.class_names) < 2:
        raise InputError(
            "classifier", "has 1 class, whose loss is always 0; expected at least 2 classes."
        )
    if len(data) < 2:
        raise InputError("data", "has 1 image; expected at least 2.")
    surrogates: dict[str, CrossLayerTranscoder] = {}
    for key, transcoder in [(name, clt), *rivals]:
        if key in (VIT, FIRST_ORDER, *surrogates):
            raise InputError("rivals", f'hold "{key}" a second time; expected different names.')
        check_fits(vit, transcoder)
        surrogates[key] = transcoder
    interventions = list(dict.fromkeys(interventions))
    if not interventions:
        raise InputError("interventions", "is empty; expected at least one.")
    for each in interventions:
        each.check(vit)
    n = vit.cfg.n_layers
    asked = layer_sets(n) if sets is None else [tuple(layer_list(s, n)) for s in sets]
    all_sets: list[LayerSet] = list(dict.fromkeys(asked))
    if not all_sets:
        raise InputError("sets", "is empty; expected at least one set of layers.")
    for each in interventions:
        if not each.reaching(vit, all_sets):
            raise InputError("sets", f"hold none that reaches the output ({each}).")

    gathered = gather_effects(
        vit, surrogates, data, classifier, interventions, all_sets, seed=seed, progress=progress
    )
    compared, mean_effects = [], {}
    for (each, path), effects in gathered.effects.items():
        kinds = [layers_kind(layers, n) for layers in effects.sets]
        by_kind = {ALL_SETS: list(range(len(kinds)))} if len(set(kinds)) > 1 else {}
        by_kind |= {
            kind: [i for i, k in enumerate(kinds) if k == kind] for kind in dict.fromkeys(kinds)
        }
        for model in (*surrogates, FIRST_ORDER):
            for effect, products in effects.products(model).items():
                for kind, chosen in by_kind.items():
                    agreement = effect_agreement(products.of_sets(chosen), seed)
                    compared.append(
                        Compared(model, each, path, effect, kind, len(chosen), agreement)
                    )
        mean_effects[each, path] = {
            model: dict(zip(effects.sets, mean_intervals(loss, seed), strict=True))
            for model, loss in effects.loss.items()
        }
    return SurrogateCausality(
        compared=compared,
        mean_effects=mean_effects,
        unaltered=gathered.unaltered,
        surrogates=list(surrogates),
        l0=gathered.l0,
        readout=classifier.name,
        model=vit.cfg.model,
        data=data.name,
        split=data.split,
        n=len(data),
        seed=seed,
    )
