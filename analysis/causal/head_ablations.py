"""Causal effects of single attention heads of the ViT: what changes when one is ablated?

What head (l, h) puts out, before the heads of its layer are projected together, is overwritten by a
fill on the ablated rows, one head at a time. For the *total* effect everything downstream is
recomputed; for the *direct* one only the final norm and the pooling see the change
(`vit_clt.hooks.passes.heads`). Read at the output: top-1, the loss, and the label's logit less the
mean logit of all classes.

The floor is all heads of all layers overwritten at once. The control is the same change turned at
random: what ablating the head adds to the residual stream, times one random orthogonal matrix drawn
for the head, so that every row is moved by as much, means over images that are 0 stay 0, and only
the directions differ; everything downstream is recomputed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.causal.head_fills import HeadFills
from vit_clt.analysis.causal.head_result import HeadAblations, head_name
from vit_clt.analysis.stats.readings import gather_readings
from vit_clt.analysis.stats.rotations import rotation_of
from vit_clt.choices import Fill, TokenKind
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, token_rows
from vit_clt.hooks.passes.heads import HeadPass
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier, Outcome


@torch.no_grad()
def head_ablations(
    vit: HookedViT,
    data: ImageData | Tensor | Iterable[Any],
    classifier: Classifier,
    *,
    ablated: TokenKind = "all",
    fill: Fill = "mean",
    seed: int = 0,
    progress: bool = False,
) -> HeadAblations:
    """Ablate each attention head of the model, and measure what changes at the output.

    Args:
        vit: the model, with no hooks attached.
        data: labelled images.
        classifier: the readout.
        ablated: kind of rows overwritten.
        fill: "mean" over the images at the same position, "resample" (the same rows of one other
            image, drawn by `seed`, one for all heads), or "zero".
        seed: seed of donors, of random turns and of bootstraps.
        progress: show progress bars.

    Raises:
        InputError: an argument is out of range, there is one image, labels have no names, `vit` has
            a hook, or its attention does not show its heads.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    token_rows(ablated, vit.cfg.rows)
    if len(data) < 2:
        raise InputError(
            "data", "has 1 image; effects are relative to how images differ, expected 2."
        )
    fills = HeadFills(vit, data, fill, ablated, seed, progress)
    heads = [(l, h) for l in range(vit.cfg.n_layers) for h in range(vit.cfg.n_heads)]
    outcomes: dict[str, list[Outcome]] = {}
    contrasts: dict[str, list[Tensor]] = {}
    with Progress(total=len(data), desc="heads", unit=" images", disable=not progress) as bar:
        for start in range(0, len(data), data.batch_size):
            batch = range(start, min(start + data.batch_size, len(data)))
            images, labels = data.batch(batch)
            clean = HeadPass(vit, images.to(vit.device), ablated=ablated)
            values = fills.of(batch)

            def read(name: str, embeddings: Tensor, labels: Tensor = labels) -> None:
                outcomes.setdefault(name, []).append(classifier.read(embeddings, labels))
                logits = classifier.logits(embeddings)
                contrasts.setdefault(name, []).append(label_contrast(logits, labels))

            read("original", clean.embeddings)
            read("every head", clean.every_head(values))
            for l, h in heads:
                change = clean.change(l, h, values)
                turned = change @ random_turn(vit.cfg.d_model, (seed, l, h)).to(change)
                read(head_name("total", l, h), clean.total(l, change))
                read(head_name("direct", l, h), clean.direct(change))
                read(head_name("random", l, h), clean.total(l, turned))
            bar.update(len(batch))
    columns = [torch.cat(parts).double().cpu().numpy() for parts in contrasts.values()]
    return HeadAblations(
        readings=gather_readings(outcomes, seed, data.label_sets),
        contrasts=np.stack(columns, axis=1),
        ablated=ablated,
        fill=fill,
        readout=classifier.name,
        model=vit.cfg.model,
        data=data.name,
        split=data.split,
        n_layers=vit.cfg.n_layers,
        n_heads=vit.cfg.n_heads,
        seed=seed,
    )


def random_turn(width: int, seed: tuple[int, ...]) -> Float[Tensor, "width width"]:
    """An orthogonal matrix, uniform over all, the same for the same seed."""
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((width, width)))
    return rotation_of(drawn)


def label_contrast(logits: Float[Tensor, "image class"], labels: Tensor) -> Float[Tensor, " image"]:
    """The label's logit less the mean logit of all classes."""
    own = logits.gather(1, labels.to(logits.device)[:, None])[:, 0]
    return own - logits.mean(1)
