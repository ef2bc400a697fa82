"""Other ways to compute the same step with stock torch: one ReLU top-k encoder, several decoders.

All take the same encoder (linear, torch.topk, relu, with autograd); they differ in how
y^_l = b_dec[l] + sum over s <= l of z_s W_dec[s->l] is formed and differentiated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_clt import CrossLayerTranscoder


class Contestant(nn.Module):
    """A copy of a CLT's parameters, its decoders in the layout of the subclass."""

    def __init__(self, clt: CrossLayerTranscoder, k: int):
        super().__init__()
        self.k = k
        self.W_enc = nn.ParameterList(w.detach().clone() for w in clt.W_enc)
        self.b_enc = nn.Parameter(clt.b_enc.detach().clone())
        self.b_dec = nn.Parameter(clt.b_dec.detach().clone())
        self.W_dec = nn.ParameterList(self.layout([w.detach() for w in clt.W_dec]))
        self.n_features = clt.config.n_features

    def layout(self, decoders: list[Tensor]) -> list[Tensor]:
        """A copy of each W_dec[s], "target feature d_model"; a subclass may lay them out anew."""
        return [w.clone() for w in decoders]

    def codes(self, x: Tensor, s: int) -> tuple[Tensor, Tensor]:
        """Values and indices of the k largest pre-activations of source s, negative ones at 0."""
        a = functional.linear(x[s], self.W_enc[s], self.b_enc[s])
        values, indices = a.topk(self.k, sorted=False)
        return values.relu(), indices

    def dense_codes(self, x: Tensor, s: int) -> Tensor:
        """z_s with its zeros, "token feature"."""
        values, indices = self.codes(x, s)
        return values.new_zeros(len(values), self.n_features).scatter(1, indices, values)


class DensePerPair(Contestant):
    """One matmul for every (source, target) pair."""

    def forward(self, x: Tensor) -> Tensor:
        """y^ of x, both "layer token d_model"."""
        outputs = list(self.b_dec)
        for s in range(len(x)):
            z = self.dense_codes(x, s)
            for j, block in enumerate(self.W_dec[s].unbind(0)):
                outputs[s + j] = outputs[s + j] + self.product(z, block)
        return torch.stack(outputs)

    def product(self, z: Tensor, block: Tensor) -> Tensor:
        """z W_dec[s->l]."""
        return z @ block


class _OneDnnProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(z, table)
        return _one_dnn(z, table.T.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        z, table = ctx.saved_tensors
        grad = grads[0].contiguous()
        return _one_dnn(grad, table), _one_dnn(z.T.contiguous(), grad.T.contiguous())


def _one_dnn(left: Tensor, right: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


class DensePerPairOneDnn(DensePerPair):
    """One matmul for every pair through oneDNN, which the default matmul skips in float32."""

    def product(self, z: Tensor, block: Tensor) -> Tensor:
        """z W_dec[s->l]."""
        return _OneDnnProduct.apply(z, block)


class SourceMajor(Contestant):
    """Decoders as one table a source, "feature (target d_model)"."""

    def layout(self, decoders: list[Tensor]) -> list[Tensor]:
        """One table a source, its targets side by side."""
        return [w.transpose(0, 1).flatten(1).contiguous() for w in decoders]

    def terms(self, x: Tensor, s: int) -> Tensor:
        """Terms of source s, "token (target d_model)"."""
        return self.dense_codes(x, s) @ self.W_dec[s]

    def forward(self, x: Tensor) -> Tensor:
        """y^ of x, both "layer token d_model"."""
        outputs = list(self.b_dec)
        for s in range(len(x)):
            terms = self.terms(x, s).unflatten(1, (len(x) - s, -1))
            for j, term in enumerate(terms.unbind(1)):
                outputs[s + j] = outputs[s + j] + term
        return torch.stack(outputs)


class DensePerSource(SourceMajor):
    """One matmul for every source, all targets at once."""


class BagPerSource(SourceMajor):
    """One embedding_bag for every source, differentiated by autograd."""

    def terms(self, x: Tensor, s: int) -> Tensor:
        """Terms of source s, "token (target d_model)"."""
        values, indices = self.codes(x, s)
        return functional.embedding_bag(
            indices, self.W_dec[s], per_sample_weights=values, mode="sum"
        )


class BagPerTarget(Contestant):
    """One embedding_bag for every target over all its sources' features."""

    def layout(self, decoders: list[Tensor]) -> list[Tensor]:
        """One table a target, its sources on top of each other."""
        n = len(decoders)
        return [torch.cat([decoders[s][l - s] for s in range(l + 1)]) for l in range(n)]

    def forward(self, x: Tensor) -> Tensor:
        """y^ of x, both "layer token d_model"."""
        codes = [self.codes(x, s) for s in range(len(x))]
        values = torch.cat([v for v, _ in codes], 1)
        indices = torch.cat([i + s * self.n_features for s, (_, i) in enumerate(codes)], 1)
        outputs = []
        for l, table in enumerate(self.W_dec):
            slots = (l + 1) * self.k
            outputs.append(
                functional.embedding_bag(
                    indices[:, :slots], table, per_sample_weights=values[:, :slots], mode="sum"
                )
                + self.b_dec[l]
            )
        return torch.stack(outputs)


class Csr(SourceMajor):
    """One CSR times dense product for every source."""

    def terms(self, x: Tensor, s: int) -> Tensor:
        """Terms of source s, "token (target d_model)"."""
        values, indices = self.codes(x, s)
        # CSR wants columns in order
        indices, order = indices.sort(1)
        starts = torch.arange(0, values.numel() + 1, self.k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            z = torch.sparse_csr_tensor(
                starts,
                indices.flatten(),
                values.gather(1, order).flatten(),
                (len(values), self.n_features),
                check_invariants=False,
            )
        return torch.sparse.mm(z, self.W_dec[s])


CONTESTANTS: dict[str, Callable[[CrossLayerTranscoder, int], Contestant]] = {
    "dense per pair": DensePerPair,
    "dense per pair, oneDNN": DensePerPairOneDnn,
    "dense per source": DensePerSource,
    "embedding_bag, source-major": BagPerSource,
    "embedding_bag, target-major": BagPerTarget,
    "torch.sparse CSR": Csr,
}
