"""The pass over the images that gathers what the measures are computed from.

The **image-level activation** of a unit is its signed activation of largest size over the image's
token rows. Of every layer these are kept as a sparse matrix, 8 bytes for each image on which a
unit is active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from vit_clt.analysis.measures.dictionaries import Dictionary
from vit_clt.analysis.measures.localization import MoranSums
from vit_clt.analysis.measures.overlap import CoveredPatches, OverlapSums
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.hooks.points import HOOK_IN
from vit_clt.progress import Progress


@dataclass(frozen=True)
class UnitActivations:
    """What a dictionary's units do on some images, by layer."""

    images: dict[int, csr_array]
    """Image-level activations, "image unit"."""
    l0: dict[int, float]
    """Active units a token row."""
    maps: dict[int, MoranSums]
    """Localization of the maps on the patch grid; empty where it was not asked for."""
    overlap: dict[int, OverlapSums]
    """Overlap with annotated regions; empty where there are none."""


@dataclass(frozen=True)
class Gathered:
    """Activations of every dictionary on the same images."""

    by_dictionary: dict[str, UnitActivations]
    embeddings: Float[np.ndarray, "image d_embed"]
    """The teacher's own embeddings."""
    labels: Int[np.ndarray, " image"]
    """-1 where unknown."""


@torch.no_grad()
def gather(
    vit: HookedViT,
    dictionaries: Mapping[str, Dictionary],
    data: ImageData,
    layers: Sequence[int],
    *,
    maps: bool,
    description: str,
    covered: CoveredPatches | None = None,
    progress: bool = False,
) -> Gathered:
    """One clean pass of the ViT over the images, which every dictionary reads.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        dictionaries: by name.
        data: the images.
        layers: the layers.
        maps: measure localization too.
        description: of the progress bar.
        covered: annotated regions of the images; measured with the maps.
        progress: show a progress bar.
    """
    names = {l: HOOK_IN.format(l=l) for l in layers}
    rows = vit.cfg.rows
    n_categories = 0 if covered is None else len(covered.categories)
    pooled = {
        (name, l): _Layer(each.n_units(l), n_categories)
        for name, each in dictionaries.items()
        for l in layers
    }
    done = 0
    embeddings, labels = [], []
    n_batches = -(-len(data) // data.batch_size)
    for images, batch_labels in Progress(data, description, n_batches, disable=not progress):
        embedded, cache = vit.run_clean(images.to(vit.device), list(names.values()))
        embeddings.append(embedded.double().cpu())
        labels.append(batch_labels.cpu())
        for (name, l), layer in pooled.items():
            codes = dictionaries[name].codes(cache[names[l]], l)
            layer.active += int(codes.l0().sum())
            # written out image by image, which stays in the processor's cache
            for image in range(len(codes)):
                values = codes[image].to_dense()
                units = layer.add(values)
                if maps:
                    sizes = values[rows.first_patch :, units].abs()
                    layer.moran.add(sizes.unflatten(0, rows.grid), units)
                    if covered is not None:
                        at = done + image
                        layer.overlap.add(sizes, units, covered.shares[at], covered.halves[at])
        done += len(images)
    n_rows = len(data) * rows.n_tokens
    found = {
        name: UnitActivations(
            {l: pooled[name, l].images() for l in layers},
            {l: pooled[name, l].active / n_rows for l in layers},
            {l: pooled[name, l].moran for l in layers} if maps else {},
            {l: pooled[name, l].overlap for l in layers} if n_categories else {},
        )
        for name in dictionaries
    }
    return Gathered(found, torch.cat(embeddings).numpy(), torch.cat(labels).numpy())


class _Layer:
    """What is gathered of one layer of one dictionary."""

    def __init__(self, n_units: int, n_categories: int):
        self.n_units = n_units
        self.values: list[np.ndarray] = []
        self.units: list[np.ndarray] = []
        self.active = 0
        self.moran = MoranSums(n_units)
        self.overlap = OverlapSums(n_units, n_categories)

    def add(self, values: Float[Tensor, "token unit"]) -> Int[Tensor, " active"]:
        """Count one image; returns the units that are active on it."""
        high, low = values.amax(0), values.amin(0)
        largest = torch.where(high >= -low, high, low)
        [units] = largest.nonzero(as_tuple=True)
        self.values.append(largest[units].float().cpu().numpy())
        self.units.append(units.int().cpu().numpy())
        return units

    def images(self) -> csr_array:
        """Image-level activations of all images; call it once, as it frees its parts."""
        offsets = np.cumsum([0, *map(len, self.units)])
        values, self.values = np.concatenate(self.values), []
        units, self.units = np.concatenate(self.units), []
        return csr_array((values, units, offsets), shape=(len(offsets) - 1, self.n_units))
