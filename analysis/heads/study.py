"""The study of attention heads: their direct terms, their ablation, and what they carry."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch

from vit_clt.analysis.causal.head_ablations import head_ablations
from vit_clt.analysis.causal.head_fills import HeadFills
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.analysis.heads.agreement import term_agreement
from vit_clt.analysis.heads.carried import CarriedSums, read_rows
from vit_clt.analysis.heads.result import DrawnImage, HeadStudy
from vit_clt.analysis.heads.terms import DirectTerms, image_terms, label_direction
from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.stats.donors import donors_of_other_labels
from vit_clt.choices import Fill, check_choice
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, ImageSubset
from vit_clt.errors import InputError
from vit_clt.hooks import FrozenPass, HookedViT, check_fits
from vit_clt.progress import Progress
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder

SAMPLE = 200
STRONGEST = 6
DRAWN = 3


@torch.no_grad()
def head_study(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    *,
    sample: int = SAMPLE,
    fill: Fill = "mean",
    strongest: int = STRONGEST,
    drawn: int = DRAWN,
    clt_name: str = "in memory",
    seed: int = 0,
    progress: bool = False,
) -> HeadStudy:
    """What every attention head adds to the label's logit, and whether ablating it agrees.

    The logit is the label's less the mean of all classes. For the strongest heads, those of largest
    absolute mean direct term beyond its floor, the features that they carry are named, and for some
    images the rows that they read.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: labelled images.
        zs: the zero-shot classifier whose logits are taken apart.
        sample: number of images studied, drawn at random; all, if there are fewer.
        fill: what is written over a head that is ablated, on all rows ("mean", "resample", "zero").
        strongest: number of heads whose features are named.
        drawn: number of these images on which the rows read are shown.
        clt_name: what the CLT is called in captions.
        seed: seed of the sample, of donors, of random turns, of intervals and of permutations.
        progress: show progress bars.

    Raises:
        InputError: a CLT or images of another model, a model that is not open_clip's own or does
            not pool the class token, a CLT with a skip connection, fewer than two images or
            classes, an image without a label, hooks on `vit`, or a number out of range.
    """
    check_fits(vit, clt)
    check_prepared(vit, data)
    check_choice("fill", fill, get_args(Fill))
    for field, number in (("sample", sample), ("strongest", strongest), ("drawn", drawn)):
        check_number(field, number)
    strongest = min(strongest, vit.cfg.n_layers * vit.cfg.n_heads)
    n = min(sample, len(data))
    # evenly spaced images may all be of a few classes, where a file deals its classes in turn
    numbers = np.sort(np.random.default_rng(seed).choice(len(data), n, replace=False)).tolist()
    data = ImageSubset(data, numbers)
    for count, what, why in (
        (len(data), "images", "floors take another label"),
        (len(zs.class_names), "classes", "a logit is read against the others"),
    ):
        if count < 2:
            raise InputError("data", f"has {count} {what} to study; expected at least 2, as {why}.")
    drawn = min(drawn, len(data))
    # what cannot be taken apart is refused before the work begins
    Sources(vit, clt, data.batch([0])[0][0].to(vit.device))
    labels = torch.cat([data.batch([i])[1] for i in range(len(data))])
    zs.check_labels(labels)
    donors = donors_of_other_labels(labels.numpy(), seed)
    fills = HeadFills(vit, data, fill, "all", seed, progress)
    directions = torch.stack([label_direction(zs, int(label)) for label in labels])
    pairs = [directions[[i, donors[i]]] for i in range(len(data))]
    found = []
    for i in Progress(range(len(data)), "direct terms", unit=" images", disable=not progress):
        frozen = FrozenPass(vit, data.batch([i])[0].to(vit.device))
        found.append(image_terms(frozen, pairs[i], fills.of([i])))
    terms = DirectTerms.stacked(found)
    ablations = head_ablations(vit, data, zs, fill=fill, seed=seed, progress=progress)
    measured = {path: ablations.logit_changes(path) for path in ("direct", "total")}
    heads = terms.strongest(strongest)
    sums = CarriedSums(heads, clt.config.n_features, clt.config.n_layers)
    shown = set(np.linspace(0, len(data) - 1, drawn).round().astype(int).tolist())
    examples, n_active = [], 0
    for i in Progress(range(len(data)), "features carried", unit=" images", disable=not progress):
        [image] = data.batch([i])[0]
        sources = Sources(vit, clt, image.to(vit.device))
        n_active += len(sources.layer)
        sums.add(sources, pairs[i])
        if i in shown:
            examples.append(
                DrawnImage(
                    number=numbers[i],
                    label=zs.class_names[int(labels[i])],
                    picture=pixels(vit, image[None])[0],
                    keys=sums.last_keys,
                    read=read_rows(sources, pairs[i][0], heads),
                )
            )
    return HeadStudy(
        terms=terms,
        ablations=ablations,
        agreement=term_agreement(terms, measured, seed),
        carried=sums.parts(),
        examples=examples,
        subject=Subject.of(vit, clt, clt_name),
        patch_grid=vit.cfg.patch_grid,
        l0=n_active / (len(data) * vit.cfg.n_layers * vit.cfg.n_tokens),
    )


def check_number(field: str, number: int) -> None:
    """Refuse a number of things below 1; of more than there are, all are taken.

    Raises:
        InputError: a number below 1.
    """
    if number < 1:
        raise InputError(field, f"is {number}; expected at least 1.")
