"""What top-k sparsifiers share: k, its schedule, and dead features that rebuild what is left over.

The loss may have an auxiliary term: aux_weight times the squared error of e^ against e = y - y^,
where e^_l is decoded by layer l's own decoder from the `aux_k` largest pre-activations among its
dead features (Gao et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_clt.choices import Backend
from vit_clt.errors import InputError
from vit_clt.kernels.choose import choose
from vit_clt.kernels.codes import Codes, SparseCodes
from vit_clt.kernels.sparse import encode_top_k
from vit_clt.kernels.topk import top_k
from vit_clt.transcoder.sparsifier_options import TopKTraining
from vit_clt.transcoder.sparsifiers.base import Encoder, Schedule, Sparsifier
from vit_clt.transcoder.train_config import SparsifierTraining

if TYPE_CHECKING:
    from vit_clt.transcoder.model import CrossLayerTranscoder


class KSchedule(Schedule):
    """k falls in a line from `k_start` to k."""

    def __init__(self, sparsifier: TopK, options: TopKTraining, total: int):
        super().__init__(sparsifier)
        self.top_k = sparsifier
        self.start = sparsifier.k if options.k_start is None else options.k_start
        self.ramp = max(1.0, options.k_ramp * total)

    def at(self, step: int) -> TopK:
        """The sparsifier at this step's k."""
        k = self.top_k.k
        now = round(self.start + (k - self.start) * min(1.0, step / self.ramp))
        return self.top_k if now == k else replace(self.top_k, k=now)


@dataclass(frozen=True)
class TopK(Sparsifier[TopKTraining]):
    """A sparsifier that keeps k of a token's features; the sparse back end stores k slots."""

    k: int = 128
    """Active features per token and layer."""
    dense_layout: ClassVar[bool] = False
    training: ClassVar[type[SparsifierTraining]] = TopKTraining

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise InputError("k", f"is {self.k}; expected a value above 0.")

    def encode(self, layers: Sequence[Encoder], backend: Backend) -> list[Codes]:
        """Top-k codes, on the sparse back end without a [token, feature] array."""
        if not self.is_sparse(layers[0], backend):
            return super().encode(layers, backend)
        return [self._encode_sparse(layer) for layer in layers]

    def is_sparse(self, layer: Encoder, backend: Backend) -> bool:
        """Whether `backend` means the sparse one for codes of k features."""
        n_features, d_model = layer.weight.shape
        return choose(backend, n_features, d_model, self.k / n_features, layer.bias) == "sparse"

    def density(self, n_features: int) -> float:
        """k / F."""
        return self.k / n_features

    @property
    def expected_l0(self) -> int:
        """k."""
        return self.k

    @classmethod
    def for_l0(cls, l0: int, like: Sparsifier[Any] | None = None) -> Sparsifier[Any]:
        """One with k = `l0`."""
        return cls(k=l0)

    def check(self, options: TopKTraining, n_features: int) -> None:
        """k_start lies from k to n_features."""
        start = options.k_start
        if start is not None and not self.k <= start <= n_features:
            raise InputError(
                "k_start", f"is {start}; expected k, {self.k}, to n_features, {n_features}."
            )

    def schedule(self, options: TopKTraining, total: int) -> Schedule:
        """k from `k_start` to k over the ramp."""
        return KSchedule(self, options, total)

    def auxiliary_error(
        self,
        clt: CrossLayerTranscoder,
        x: Float[Tensor, "layer token d_model"],
        error: Float[Tensor, "layer token d_model"],
        dead: Bool[Tensor, "layer feature"],
        options: TopKTraining,
    ) -> Float[Tensor, "layer token d_model"]:
        """e^ + (y^ - y); zero for a layer without dead features."""
        found = []
        for l, chosen in enumerate(dead):
            features = chosen.nonzero()[:, 0]
            if not len(features):
                found.append(torch.zeros_like(error[l]))
                continue
            # index_select: the gradient of indexing with a tensor is many times slower on CPU
            W_enc, b_enc = (v.index_select(0, features) for v in (clt.W_enc[l], clt.b_enc[l]))
            a = nn.functional.linear(x[l], W_enc, b_enc)
            z = self.of_a_token(a, min(options.aux_k, len(features))).to_dense()
            e_hat = z @ clt.W_dec[l][0].index_select(0, features)
            found.append(error[l] + e_hat.float())
        return torch.stack(found)

    def of_a_token(self, a: Float[Tensor, "*token feature"], k: int) -> Codes:
        """Codes of the k features of each token that this sparsifier ranks first."""
        return replace(self, k=k)(a)

    def stored(self, options: TopKTraining, n_features: int) -> int:
        """The larger of k and `k_start`."""
        return min(n_features, max(self.k, options.k_start or 0))

    def _encode_sparse(self, layer: Encoder) -> Codes:
        x, shape = layer.x, (*layer.x.shape[:-1], self.k)
        flat = x.reshape(-1, x.shape[-1])
        values, indices = encode_top_k(flat, layer.weight, layer.bias, self.k, signed=self.signed)
        return SparseCodes(values.view(shape), indices.view(shape), len(layer.weight))


def largest(a: Float[Tensor, "*token feature"], k: int) -> Int[Tensor, "*token slot"]:
    """Indices of the k largest entries of each token."""
    _, indices = top_k(a.detach().reshape(-1, a.shape[-1]), k)
    return indices.view(*a.shape[:-1], k)
