"""Dictionaries: the units of every layer that are measured, all of them by the same code.

The features of a CLT are one; its floors are an untrained CLT, the hidden units of the ViT's own
MLPs, and the principal components of x_l. All read x_l and give each token row its activations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.hooks.neurons import hidden_units, output_layer
from vit_clt.hooks.points import HOOK_IN
from vit_clt.kernels.codes import Codes, DenseCodes
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder


class Dictionary(ABC):
    """Units of every layer, each with one activation on every token row."""

    @abstractmethod
    def n_units(self, layer: int) -> int:
        """Number of units of a layer."""

    @abstractmethod
    def codes(self, x: Float[Tensor, "image token d_model"], layer: int) -> Codes:
        """The activations of a layer's units for inputs x_l of its MLP, "image token unit"."""


class CLTFeatures(Dictionary):
    """The features of a CLT, whose activations are its codes."""

    def __init__(self, clt: CrossLayerTranscoder):
        self.clt = clt

    def n_units(self, layer: int) -> int:
        """F."""
        return self.clt.config.n_features

    def codes(self, x: Float[Tensor, "image token d_model"], layer: int) -> Codes:
        """The codes z_l."""
        return self.clt.encode(x, layer=layer)


class Neurons(Dictionary):
    """The hidden units of the ViT's own MLPs, after their activation function."""

    def __init__(self, vit: HookedViT):
        self.vit = vit

    def n_units(self, layer: int) -> int:
        """d_mlp."""
        return output_layer(self.vit.blocks[layer]).in_features

    def codes(self, x: Float[Tensor, "image token d_model"], layer: int) -> Codes:
        """What the MLP's last linear layer reads; a smooth activation function is never silent."""
        return DenseCodes(hidden_units(self.vit.blocks[layer], x))


class PrincipalComponents(Dictionary):
    """Scores of x_l on its principal components, (x_l - mean) V, the largest variance first.

    Args:
        means: of x_l over token rows, by layer.
        axes: the components, columns of V, by layer.
    """

    def __init__(
        self,
        means: Mapping[int, Float[Tensor, " d_model"]],
        axes: Mapping[int, Float[Tensor, "d_model component"]],
    ):
        self.means, self.axes = means, axes

    @classmethod
    @torch.no_grad()
    def of_images(
        cls, vit: HookedViT, data: ImageData, layers: Sequence[int], *, progress: bool = False
    ) -> PrincipalComponents:
        """All components of x_l over every token row of these images, in one pass.

        Args:
            vit: the teacher.
            data: the images.
            layers: the layers.
            progress: show a progress bar.
        """
        names = {l: HOOK_IN.format(l=l) for l in layers}
        d = vit.cfg.d_model
        sums = {l: torch.zeros(d, dtype=torch.float64) for l in layers}
        products = {l: torch.zeros(d, d, dtype=torch.float64) for l in layers}
        n_rows = 0
        n_batches = -(-len(data) // data.batch_size)
        for images, _ in Progress(data, "components", n_batches, disable=not progress):
            cache = vit.clean_cache(images.to(vit.device), list(names.values()))
            for l, name in names.items():
                x = cache[name].flatten(0, 1).double().cpu()
                sums[l] += x.sum(0)
                products[l] += x.T @ x
            n_rows += len(images) * vit.cfg.n_tokens
        means = {l: each / n_rows for l, each in sums.items()}
        axes = {}
        for l, each in products.items():
            covariance = (each / n_rows - means[l].outer(means[l])).numpy()
            _, vectors = np.linalg.eigh(covariance)
            axes[l] = torch.from_numpy(vectors[:, ::-1].copy())

        def kept(parts: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {l: part.to(vit.device, vit.tower.dtype) for l, part in parts.items()}

        return cls(kept(means), kept(axes))

    def n_units(self, layer: int) -> int:
        """d_model."""
        return self.axes[layer].shape[1]

    def codes(self, x: Float[Tensor, "image token d_model"], layer: int) -> Codes:
        """Scores on the components, signed."""
        return DenseCodes((x - self.means[layer]) @ self.axes[layer])
