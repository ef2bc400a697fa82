"""Sets of features by source layer, which are compared with one another and set to given codes.

`vit_clt.hooks.steer` sets features to one number, or scales them; here each feature has a code of
its own on every row and image. Every MLP is replaced by the CLT with error nodes, so that unchanged
codes give the unaltered model, bit for bit. The edit reaches later layers through the stream, that
is through attention and through their own codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.hooks.activations import capture
from vit_clt.hooks.points import FwdHooks
from vit_clt.transcoder.model import CrossLayerTranscoder

# the number of features may differ between layers, so the axis has no name
FeatureSet = Mapping[int, Int[Tensor, " _"]]
"""Numbers of features by source layer."""


def compared_sets(
    clt: CrossLayerTranscoder, group: FeatureSet, randoms: Sequence[FeatureSet]
) -> dict[str, FeatureSet]:
    """The group and the random sets by name: "group", "random 0", "random 1", ...

    Raises:
        InputError: there is no random set, or a set is not one of features of this CLT.
    """
    if not randoms:
        raise InputError("randoms", "is empty; expected at least one set to compare with.")
    sets = {"group": group, **{f"random {i}": random for i, random in enumerate(randoms)}}
    for name, features in sets.items():
        _check_features(clt, features, name)
    return sets


def _check_features(clt: CrossLayerTranscoder, group: FeatureSet, name: str) -> None:
    """Refuse a set that is not one of features of this CLT.

    Raises:
        InputError: the set is empty, a layer or feature is out of range, or a feature is given
            twice.
    """
    if not sum(map(len, group.values())):
        raise InputError(name, "is empty; expected at least one feature.")
    n_layers, n_features = clt.config.n_layers, clt.config.n_features
    for layer, features in group.items():
        if not 0 <= layer < n_layers:
            raise InputError(name, f"holds layer {layer}; expected 0 to {n_layers - 1}.")
        for feature in features.tolist():
            if not 0 <= feature < n_features:
                raise InputError(
                    name,
                    f"holds feature {layer}:{feature}; expected 0 to {n_features - 1} of a layer.",
                )
        if len(features.unique()) < len(features):
            raise InputError(name, f"holds a feature of layer {layer} twice.")


def overlap(group: FeatureSet, others: Sequence[FeatureSet]) -> float:
    """Share of the group that is also in another set, as a mean over the other sets."""
    size = sum(map(len, group.values()))
    shared = [
        int(torch.isin(features, other[s]).sum())
        for other in others
        for s, features in group.items()
        if s in other
    ]
    return sum(shared) / (size * len(others))


def active_codes(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: Float[Tensor, "batch 3 height width"],
    rows: Int[Tensor, " row"],
    layers: Iterable[int],
) -> dict[int, Bool[Tensor, "batch row feature"]]:
    """Whether each feature is active on each of these rows of the unaltered model, by layer."""
    x = capture(vit, images).x[:, :, rows]
    return {s: clt.encode(x[s], layer=s).to_dense().ne(0) for s in layers}


@torch.no_grad()
def with_codes(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: Float[Tensor, "batch 3 height width"],
    group: FeatureSet,
    rows: Int[Tensor, " row"],
    codes: Mapping[int, Float[Tensor, "*batch row _"]],
) -> Float[Tensor, "batch d_embed"]:
    """Embeddings of the images with the group's features set to `codes` on these token rows.

    Args:
        vit: the teacher.
        clt: its transcoder.
        images: one batch.
        group: features by source layer.
        rows: token rows.
        codes: for each layer of the group its codes, one column per feature in the order of
            `group`, the same for all images or with a batch axis.
    """
    with replace_mlps(vit, clt, layers=range(vit.cfg.n_layers), error_node=True):
        hooks: FwdHooks = []
        for s, features in group.items():
            at = (slice(None), rows[:, None], features)
            hooks.append((f"clt.{s}.hook_codes", partial(_write, at=at, values=codes[s])))
        return vit.run_with_hooks(images, fwd_hooks=hooks)


def _write(z: Tensor, hook: HookPoint, at: tuple[Any, ...], values: Tensor) -> Tensor:
    edited = z.clone()
    edited[at] = values.to(z)
    return edited
