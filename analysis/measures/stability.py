"""Stability over seeds: has another CLT, trained from another seed, the same features?

Features are compared by what they write: the decoder rows of feature (s, i) to all targets that
both CLTs have, one after the other, as one vector of unit length.

    stability(s, i) = max_j cos(w_si, w'_sj)

over all features j of the same layer of the other CLT (the *mean max cosine similarity* is its
mean). |cos| takes the place of cos where codes are signed, as (z, w) and (-z, -w) write the same.
A pair is **matched** where each is the other's nearest and their cosine is at least 0.7, the
threshold of Paulo and Belrose (2025, arXiv 2501.16615). Nearest neighbours take F^2 comparisons,
where an optimal assignment of all features would take some F^3 steps.

The floor is the same against decoders that are turned at random: in the space of every target one
random rotation, which keeps lengths and angles among the other CLT's features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_clt.analysis.stats.rotations import rotation_of
from vit_clt.errors import InputError
from vit_clt.transcoder.model import CrossLayerTranscoder

MATCHED = 0.7
"""The least cosine of two features that are called the same."""
_CHUNK = 2048


@dataclass(frozen=True)
class Stability:
    """The features of one layer, compared with those of another CLT."""

    nearest: Float[np.ndarray, " feature"]
    """Largest cosine with a feature of the other CLT; NaN for a feature that writes nothing."""
    matched: Bool[np.ndarray, " feature"]
    """Whether the nearest feature's nearest is this one, at a cosine of `MATCHED` or more."""
    floor: Float[np.ndarray, " feature"]
    """`nearest` against the other's decoders turned at random."""


@torch.no_grad()
def stability(
    clt: CrossLayerTranscoder, other: CrossLayerTranscoder, layer: int, seed: int = 0
) -> Stability:
    """Compare the features of one layer of two CLTs by their decoders.

    Args:
        clt: whose features are scored.
        other: a CLT of the same ViT and width, trained from another seed.
        layer: the source layer.
        seed: seed of the random rotations.

    Raises:
        InputError: the CLTs have other sizes.
    """
    check_same_shape(clt, other)
    shared = sorted(set(clt.config.targets(layer)) & set(other.config.targets(layer)))
    rotations = torch.Generator().manual_seed(seed)
    parts, theirs, turned = [], [], []
    for target in shared:
        parts.append(clt.decoder(layer, target))
        theirs.append(other.decoder(layer, target))
        turned.append(theirs[-1] @ _rotation(theirs[-1], rotations))
    signed = clt.config.sparsifier.signed or other.config.sparsifier.signed
    ours = _unit(torch.cat(parts, dim=1))
    nearest, place = _nearest(ours, _unit(torch.cat(theirs, dim=1)), signed)
    _, back = _nearest(_unit(torch.cat(theirs, dim=1)), ours, signed)
    mutual = back[place] == torch.arange(len(place), device=place.device)
    floor, _ = _nearest(ours, _unit(torch.cat(turned, dim=1)), signed)
    writes = ours.isfinite().all(1).cpu().numpy()
    return Stability(
        np.where(writes, nearest.cpu().double().numpy(), np.nan),
        (mutual & (nearest >= MATCHED)).cpu().numpy() & writes,
        np.where(writes, floor.cpu().double().numpy(), np.nan),
    )


def check_same_shape(clt: CrossLayerTranscoder, other: CrossLayerTranscoder) -> None:
    """Refuse two CLTs whose features cannot be matched.

    Raises:
        InputError: another number of layers or features, or another width.
    """
    for name in ("n_layers", "d_model", "n_features"):
        ours, theirs = getattr(clt.config, name), getattr(other.config, name)
        if ours != theirs:
            raise InputError(
                "seed_clt", f"has {name} {theirs}; expected {ours}, as the CLT it is compared with."
            )


def _unit(rows: Float[Tensor, "feature d"]) -> Float[Tensor, "feature d"]:
    # a feature that writes nothing has no direction: NaN
    return rows / rows.norm(dim=1, keepdim=True)


def _nearest(
    rows: Float[Tensor, "feature d"], others: Float[Tensor, "other d"], signed: bool
) -> tuple[Tensor, Tensor]:
    """Largest cosine of each row, and its place among the others."""
    others = others.nan_to_num(0.0)
    values, places = [], []
    for part in rows.nan_to_num(0.0).split(_CHUNK):
        cosines = part @ others.T
        best = (cosines.abs() if signed else cosines).max(dim=1)
        values.append(best.values)
        places.append(best.indices)
    return torch.cat(values), torch.cat(places)


def _rotation(rows: Float[Tensor, "feature d"], generator: torch.Generator) -> Tensor:
    """A random rotation of the space that these rows lie in."""
    d = rows.shape[1]
    return rotation_of(torch.randn(d, d, generator=generator, dtype=torch.float64)).to(rows)
