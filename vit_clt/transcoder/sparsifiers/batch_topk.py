"""BatchTopK: k features a token on average, chosen among all rows of a training batch together.

Bussmann, Leask and Nanda 2024 (arXiv 2412.06410). In training the k N largest positive
pre-activations of a layer's N rows stay, so that rows which need more features get them. Elsewhere
a row must not depend on the others: there each layer has one fitted threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.choices import Backend
from vit_clt.kernels.chunks import pre_activation_chunks
from vit_clt.kernels.codes import Codes, DenseCodes, RaggedCodes
from vit_clt.kernels.jump import positions
from vit_clt.kernels.sparse import encode_entries
from vit_clt.transcoder.sparsifiers.base import Encoder
from vit_clt.transcoder.sparsifiers.relu_topk import ReLUTopK
from vit_clt.transcoder.sparsifiers.topk import TopK

RATE = 0.05
"""Share of a training step in the running mean of thresholds: the mean is over about the last
twenty steps, so that it follows a short training to its end."""
Chunks = Iterable[tuple[int, Float[Tensor, "chunk feature"]]]
"""Pre-activations, some rows at a time, with the number of the first row."""
Chosen = tuple[Tensor, Tensor]
"""Pre-activations " entry", and their places " entry" in the flattened array."""


@dataclass(frozen=True)
class BatchTopK(TopK):
    """In training z keeps the k N largest positive entries of a, over all N rows of the batch.

    Elsewhere z = a * 1[a > theta_l]. theta_l is one number a layer, a buffer `theta` "layer" of the
    CLT that is saved with its weights: the running mean of m, the smallest entry that a training
    step kept in layer l (theta = m at the first step, then theta += RATE (m - theta)). Before the
    first step it is 0, and codes are ReLU(a). L0 is k in training, elsewhere near k, not k.

    The batch is the whole batch of a step: it is neither worked through in parts (`accumulate`) nor
    shared between processes. The last batch of an epoch may have fewer rows, and keeps k a row.
    """

    name: ClassVar[str] = "batch_topk"
    label: ClassVar[str] = "BatchTopK"
    whole_batch: ClassVar[bool] = True
    dense_layout: ClassVar[bool] = True

    def __call__(
        self, a: Float[Tensor, "*token feature"], theta: Float[Tensor, ""] | None = None
    ) -> Codes:
        """Codes of pre-activations above `theta`; None chooses among all rows of `a`."""
        if theta is not None:
            return DenseCodes(a * (a > theta))
        flat = a.detach().flatten()
        kept = flat.topk(self.k * (len(flat) // a.shape[-1])).indices
        largest = torch.zeros_like(flat, dtype=torch.bool)
        largest[kept] = True
        return DenseCodes(a * (largest.view(a.shape) & (a > 0)))

    def encode(self, layers: Sequence[Encoder], backend: Backend) -> list[Codes]:
        """Codes at the fitted thresholds; ragged on the sparse back end."""
        if not self.is_sparse(layers[0], backend):
            return [self(layer.pre_activations(), layer.own["theta"]) for layer in layers]
        return [_entries(layer, _above(layer.own["theta"])) for layer in layers]

    def encode_batch(self, layers: Sequence[Encoder], backend: Backend) -> list[Codes]:
        """Codes of the k N largest; ragged on the sparse back end."""
        if not self.is_sparse(layers[0], backend):
            return [self(layer.pre_activations()) for layer in layers]
        return [_entries(layer, _largest(self.k * layer.x[..., 0].numel())) for layer in layers]

    def tensors(self, n_layers: int, n_features: int) -> dict[str, Tensor]:
        """theta "layer", a buffer."""
        return {"theta": torch.zeros(n_layers)}

    def thresholds(
        self, own: Mapping[str, Tensor], n_features: int
    ) -> Float[Tensor, "layer feature"]:
        """theta_l, the same for every feature of layer l."""
        return own["theta"][:, None].expand(-1, n_features)

    @torch.no_grad()
    def observe_(self, codes: Codes, own: Mapping[str, Tensor]) -> None:
        """The running mean of the smallest entries that are kept."""
        theta = own["theta"]
        smallest = torch.stack([_smallest(codes[l]) for l in range(len(codes))]).to(theta)
        mean = torch.where(theta == 0, smallest, theta + RATE * (smallest - theta))
        # a layer in which nothing is kept has no smallest entry
        theta.copy_(torch.where(smallest.isfinite(), mean, theta))

    def of_a_token(self, a: Float[Tensor, "*token feature"], k: int) -> Codes:
        """As ReLU-TopK."""
        return ReLUTopK(k)(a)


def _above(theta: Float[Tensor, ""]) -> Callable[[Chunks], Chosen]:
    """Chooses all pre-activations above theta."""

    def choose(chunks: Chunks) -> Chosen:
        found = [_kept(start, a, theta) for start, a in chunks]
        return torch.cat([value for value, _ in found]), torch.cat([place for _, place in found])

    return choose


def _largest(n: int) -> Callable[[Chunks], Chosen]:
    """Chooses the n largest positive pre-activations."""

    def choose(chunks: Chunks) -> Chosen:
        found: list[Chosen] = []
        bound = None
        for start, a in chunks:
            found.append(_kept(start, a, a.new_zeros(()) if bound is None else bound))
            # pruned once as many wait as can stay: each costs its share of few selections
            if sum(len(value) for value, _ in found) > 2 * n:
                found = [_first(found, n)]
                bound = found[0][0].min()
        values, places = _first(found, n)
        places, order = places.sort()
        return values[order], places

    return choose


def _kept(start: int, a: Float[Tensor, "chunk feature"], bound: Float[Tensor, ""]) -> Chosen:
    place = positions(a > bound)
    return a.view(-1).index_select(0, place), place + start * a.shape[1]


def _first(found: Sequence[Chosen], n: int) -> Chosen:
    """The n largest, in no order."""
    values, places = (torch.cat(parts) for parts in zip(*found, strict=True))
    if len(values) <= n:
        return values, places
    values, order = values.topk(n, sorted=False)
    return values, places[order]


def _entries(layer: Encoder, choose: Callable[[Chunks], Chosen]) -> RaggedCodes:
    """Codes of the pre-activations that are chosen, without a [token, feature] array."""
    n_features, tokens = len(layer.weight), tuple(layer.x.shape[:-1])
    x = layer.x.reshape(-1, layer.x.shape[-1]).contiguous()
    with torch.no_grad():
        # there may be no rows
        nothing = [(0, layer.bias.new_empty(0, n_features))]
        chunks = pre_activation_chunks(x, layer.weight, layer.bias)
        values, places = choose(chain(nothing, chunks))
        counts = torch.bincount(places // n_features, minlength=len(x))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        indices = places % n_features
    found = encode_entries(x, layer.weight, layer.bias, values, indices, offsets)
    return RaggedCodes(found, indices, offsets, tokens, n_features)


def _smallest(codes: Codes) -> Float[Tensor, ""]:
    """The smallest code of one layer that is not 0, infinite if there is none."""
    values = codes.entries().values
    infinity = values.new_full((1,), torch.inf)
    return torch.cat([values[values > 0], infinity]).min()
