"""Features by source layer: what is chosen together, edited together, and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.transcoder.model import CrossLayerTranscoder

# layers may differ in how many they have, so the axis has no name
FeatureSet = Mapping[int, Int[Tensor, " _"]]
"""Features by source layer."""


def compared_sets(
    clt: CrossLayerTranscoder, group: FeatureSet, randoms: Sequence[FeatureSet]
) -> dict[str, FeatureSet]:
    """The group and the random sets beside it, by name: "group", "random 0", "random 1", ...

    Raises:
        InputError: no random set, or one that is no set of features of this CLT.
    """
    if not randoms:
        raise InputError("randoms is empty; expected at least one set to compare with.")
    sets = {"group": group, **{f"random {i}": each for i, each in enumerate(randoms)}}
    for name, each in sets.items():
        _check_features(clt, each, name)
    return sets


def _check_features(clt: CrossLayerTranscoder, group: FeatureSet, name: str) -> None:
    """Refuse what is no set of features of this CLT.

    Raises:
        InputError: no features, a layer or a feature out of range, or one given twice.
    """
    if not sum(map(len, group.values())):
        raise InputError(f"{name} is empty; expected at least one feature.")
    n_layers, n_features = clt.config.n_layers, clt.config.n_features
    for layer, features in group.items():
        if not 0 <= layer < n_layers:
            raise InputError(f"{name} holds layer {layer}; expected 0 to {n_layers - 1}.")
        for feature in features.tolist():
            if not 0 <= feature < n_features:
                raise InputError(
                    f"{name} holds feature {feature} of layer {layer}; expected 0 to "
                    f"{n_features - 1}."
                )
        if len(features.unique()) < len(features):
            raise InputError(f"{name} holds a feature of layer {layer} twice.")


def overlap(group: FeatureSet, others: Sequence[FeatureSet]) -> float:
    """Share of the group that another set holds too, mean over the sets."""
    size = sum(map(len, group.values()))
    held = [
        int(torch.isin(features, other[s]).sum())
        for other in others
        for s, features in group.items()
        if s in other
    ]
    return sum(held) / (size * len(others))
