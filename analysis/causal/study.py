"""Causal effects of the ViT's own MLPs or attention layers: what changes when one is ablated?

No CLT takes part: contribution scores C(s->l) are compared with these effects. At layer s the
*ablated* rows of out_s are overwritten by a fill, and the change is measured on the *scored* rows
of MLP_l, and at the output:

    effect(s->l) = E||y_l - y_l^(s)||^2 / E||y_l - mean y_l||^2

over images and scored rows, with the mean over images at the same position. 0 says that y_l did not
change, 1 that it changed as far as it varies over images, as if y_l itself were overwritten by its
mean (by rows of other images, it would be about 2). For total effects everything downstream is
recomputed; direct ones change only the stream that LN2_l reads (`vit_clt.hooks.OverwrittenPass`).
The form is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import Tensor

from vit_clt.analysis.causal.effects import CausalEffects
from vit_clt.analysis.causal.targets import EffectSums
from vit_clt.analysis.stats.donors import donor_cycle
from vit_clt.analysis.stats.means import position_means
from vit_clt.analysis.stats.names import LayerSet, layer_sets, layers_text
from vit_clt.analysis.stats.readings import gather_readings
from vit_clt.choices import Fill, Site, TokenKind, check_choice
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, OverwrittenPass, layer_list, token_rows
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, SITE_OUT
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier, Outcome


@torch.no_grad()
def causal_effects(
    vit: HookedViT,
    data: ImageData | Tensor | Iterable[Any],
    classifier: Classifier | None = None,
    *,
    tokens: TokenKind = "cls",
    ablated: TokenKind = "all",
    fill: Fill = "mean",
    site: Site = "mlp",
    sets: Iterable[Iterable[int]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> CausalEffects:
    """Ablate each layer of the model, and measure the effect on every MLP above and on the output.

    All passes of an image share its clean pass: for a total effect of layer s the blocks from s on
    run again, for a direct one on MLP_l only the scored rows of MLP_l.

    Args:
        vit: the model, with no hooks attached.
        data: images, labelled if there is a classifier.
        classifier: the readout; without it only effects on targets are measured.
        tokens: kind of rows scored at the targets, as in C(s->l).
        ablated: kind of rows overwritten at the sources. By default these are all rows, since a CLS
            row reads the patch rows of lower layers through attention, which total effects include.
            The direct effect on a scored row comes from the same row alone, and is 0 where that
            row is not ablated.
        fill: "mean" over the images at the same position, "resample" (the same rows of one other
            image, drawn by `seed`, one for all layers), or "zero".
        site: outputs that are ablated, "mlp" or "attn". MLP_l reads the attention of its own block,
            but not its own output.
        sets: sets of layers ablated together, for effects on the output; by default
            `layer_sets(n_layers)`. Each layer alone and all layers together are always added.
        seed: seed of donors and of bootstraps.
        progress: show progress bars.

    Raises:
        InputError: an argument is out of range, there is one image, there are `sets` but no
            classifier, labels have no names, `vit` has a hook, or activations are NaN or infinite.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    n = vit.cfg.n_layers
    for kind in (tokens, ablated):
        token_rows(kind, vit.cfg.rows)
    check_choice("fill", fill, get_args(Fill))
    check_choice("site", site, get_args(Site))
    if sets is not None and classifier is None:
        raise InputError(
            "sets", "is given without a classifier; sets of layers are read at the output."
        )
    if len(data) < 2:
        raise InputError(
            "data", "has 1 image; effects are relative to how images differ, expected 2."
        )
    single: list[LayerSet] = [(s,) for s in range(n)]
    ablated_sets = single
    if classifier:
        asked = layer_sets(n) if sets is None else [tuple(layer_list(s, n)) for s in sets]
        ablated_sets = list(dict.fromkeys([*single, *asked, tuple(range(n))]))

    means = _Means(vit, data, site, tokens, ablated, progress)
    donors = donor_cycle(len(data), seed) if fill == "resample" else []
    sums = EffectSums(len(data), n)
    outcomes: dict[str, list[Outcome]] = {}
    with Progress(total=len(data), desc="causal", unit=" images", disable=not progress) as bar:
        for start in range(0, len(data), data.batch_size):
            batch = range(start, min(start + data.batch_size, len(data)))
            images, labels = data.batch(batch)
            clean = OverwrittenPass(
                vit, images.to(means.device), site=site, ablated=ablated, scored=tokens
            )
            values: dict[int, Tensor] | None = None
            if fill == "mean":
                values = means.fill
            elif fill == "resample":
                values = _outputs(vit, data, [donors[i] for i in batch], site, ablated)
            sums.add_clean(batch, "y", clean.y, means.y)
            sums.add_clean(batch, "x", clean.x, means.x)
            for s in range(n):
                for l in clean.readers(s):
                    sums.add(batch, "direct", l, s, *clean.direct_on_mlp(s, l, values))
            # Only a classifier reads the output.
            versions = {"original": clean.embeddings} if classifier else {}
            for layers in ablated_sets:
                altered = clean.total(layers, values)
                if layers in single:
                    for l in clean.readers(layers[0]):
                        dx, dy = altered.x[l] - clean.x[l], altered.y[l] - clean.y[l]
                        sums.add(batch, "total", l, layers[0], dx, dy)
                if classifier:
                    versions[f"total {layers_text(layers)}"] = altered.embeddings
                    direct = clean.direct_on_output(layers, values)
                    versions[f"direct {layers_text(layers)}"] = direct
            if classifier:
                for name, embeddings in versions.items():
                    outcomes.setdefault(name, []).append(classifier.read(embeddings, labels))
            bar.update(len(batch))
    return CausalEffects(
        on_targets=sums.effects(),
        readings=gather_readings(outcomes, seed, data.label_sets) if classifier else None,
        layer_sets=ablated_sets,
        site=site,
        tokens=tokens,
        ablated=ablated,
        fill=fill,
        readout=classifier.name if classifier else None,
        model=vit.cfg.model,
        data=data.name,
        split=data.split,
        n=len(data),
        n_layers=n,
        seed=seed,
    )


class _Means:
    """Means over the images at each position, of x and y of the targets and of the mean fill."""

    def __init__(
        self,
        vit: HookedViT,
        data: ImageData,
        site: Site,
        tokens: TokenKind,
        ablated: TokenKind,
        progress: bool,
    ):
        names = {p: _at_layers(vit, p) for p in {HOOK_IN, HOOK_OUT, SITE_OUT[site]}}
        all_names = [name for point_names in names.values() for name in point_names]
        means = position_means(vit, data, all_names, title="means", progress=progress)
        self.device = means[all_names[0]].device
        scored, overwritten = (token_rows(kind, vit.cfg.rows) for kind in (tokens, ablated))
        self.x = [means[name][scored] for name in names[HOOK_IN]]
        self.y = [means[name][scored] for name in names[HOOK_OUT]]
        self.fill = {l: means[name][overwritten] for l, name in enumerate(names[SITE_OUT[site]])}


def _outputs(
    vit: HookedViT, data: ImageData, images: list[int], site: Site, tokens: TokenKind
) -> dict[int, Tensor]:
    names = _at_layers(vit, SITE_OUT[site])
    cache = vit.clean_cache(data.batch(images)[0].to(next(vit.parameters()).device), names)
    rows = token_rows(tokens, vit.cfg.rows)
    return {l: cache[name][:, rows] for l, name in enumerate(names)}


def _at_layers(vit: HookedViT, point: str) -> list[str]:
    return [point.format(l=l) for l in range(vit.cfg.n_layers)]
