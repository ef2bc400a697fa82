"""Embeddings of a model, of its surrogate and of two floors, gathered in one pass over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.fit.cascade_study import mean_mlp_outputs
from vit_clt.choices import Inputs, TokenKind
from vit_clt.data.fingerprints import image_keys
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import (
    HookedViT,
    overwrite_mlp_hooks,
    replacement_hooks,
    token_rows,
)
from vit_clt.hooks.points import HOOK_IN, FwdHooks
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

Version = Literal["original", "surrogate", "floor_mean", "floor_zero"]


@dataclass(frozen=True)
class SurrogateEmbeddings:
    """Embeddings of all versions, not normalised, on the CPU.

    The order of the images depends only on their pixels and the seed, not on that of the data.
    """

    versions: dict[Version, Float[Tensor, "image d_embed"]]
    labels: Int[Tensor, " image"]
    l0: float
    """Active features a token row and layer on the replaced rows, teacher trajectory, over all
    sources of the replaced layers."""

    def __len__(self) -> int:
        return len(self.labels)


@torch.no_grad()
def gather_embeddings(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    layers: Sequence[int],
    tokens: TokenKind,
    inputs: Inputs,
    seed: int,
    progress: bool = False,
) -> SurrogateEmbeddings:
    """Embed every image with every version of the model.

    "original" is the unaltered model, "surrogate" has the CLT at these layers and rows; the floors
    have the model's own MLP rows there at their mean over `data` at the same position, or at zero.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        classifier: the readout, whose class names the labels must fit.
        layers: layers replaced, counted from 0.
        tokens: kind of rows replaced.
        inputs: where codes come from, "stream" or "teacher".
        seed: seed of the order of the images.
        progress: show a progress bar.

    Raises:
        InputError: labels have no names, or embeddings are NaN or infinite.
    """
    device = clt.b_dec.device
    rows = token_rows(tokens, vit.cfg.rows)
    means = mean_mlp_outputs(vit, data)
    at_mean = overwrite_mlp_hooks(layers, tokens, {l: means[l, rows] for l in layers})
    at_zero = overwrite_mlp_hooks(layers, tokens)
    names = [HOOK_IN.format(l=s) for s in range(max(layers) + 1)]

    embeddings: dict[Version, list[Tensor]] = {version: [] for version in get_args(Version)}
    keys: list[bytes] = []
    all_labels: list[Tensor] = []
    active = 0.0
    n_batches = -(-len(data) // data.batch_size)
    for images, labels in Progress(
        data, f"faithfulness ({tokens})", total=n_batches, disable=not progress
    ):
        classifier.check_labels(labels)
        keys += image_keys(images, labels, seed)
        all_labels.append(labels)
        images = images.to(device)
        original, cache = vit.run_with_cache(images, names_filter=names)
        hooks = replacement_hooks(clt, layers=layers, tokens=tokens, inputs=inputs, clean=cache)
        altered: dict[Version, FwdHooks] = {
            "surrogate": hooks,
            "floor_mean": at_mean,
            "floor_zero": at_zero,
        }
        embeddings["original"].append(original.cpu())
        for version, fwd_hooks in altered.items():
            embeddings[version].append(vit.run_with_hooks(images, fwd_hooks=fwd_hooks).cpu())
        for s, name in enumerate(names):
            l0 = clt.encode(cache[name][:, rows], layer=s).l0().double().mean()
            active += float(l0) * len(images) / len(names)

    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    versions = {version: torch.cat(parts)[order] for version, parts in embeddings.items()}
    for version, joined in versions.items():
        if not joined.isfinite().all():
            raise InputError(
                f"embeddings of the {version} model hold NaN or infinite values; expected finite "
                "ones."
            )
    return SurrogateEmbeddings(versions, torch.cat(all_labels)[order], active / len(keys))
