"""The cross-layer transcoder: a sparse, linear-in-its-codes stand-in for every MLP of a ViT.

    z_s   = sparsify(W_enc[s] x_s + b_enc[s])
    y^_l  = b_dec[l] + sum over s <= l of c_{s->l},    c_{s->l} = z_s W_dec[s->l]

x_l is the MLP's input at layer l (LayerNorm 2's output), y_l its output (arXiv 2604.13304). The
decoder of source s is stored as one tensor `W_dec[s]` "target feature d_model" whose first axis
runs over targets s, s+1, ..., n_layers-1, so that no zero block is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_clt.checkpoints import PretrainedCLT
from vit_clt.codes import Codes, stack_codes
from vit_clt.config import CLTConfig
from vit_clt.errors import InputError
from vit_clt.sparsifiers import JumpReLU


class CrossLayerTranscoder(PretrainedCLT):
    """A CLT, its parameters public.

    W_enc[s] "feature d_model", b_enc "layer feature", W_dec[s] "target feature d_model" (targets
    s..L-1), b_dec "layer d_model" and, for JumpReLU, log_theta "layer feature" (else None).
    Weights start at W_enc ~ U(+-1/sqrt(F)), W_dec ~ U(+-1/sqrt(L d)), biases 0 (our choice; the
    paper is silent).
    """

    log_theta: nn.Parameter | None

    def __init__(self, config: CLTConfig):
        super().__init__()
        self.config = config
        n, f, d = config.n_layers, config.n_features, config.d_model
        self.W_enc = nn.ParameterList(_uniform((f, d), 1 / sqrt(f)) for _ in range(n))
        self.b_enc = nn.Parameter(torch.zeros(n, f))
        self.W_dec = nn.ParameterList(_uniform((n - s, f, d), 1 / sqrt(n * d)) for s in range(n))
        self.b_dec = nn.Parameter(torch.zeros(n, d))
        if isinstance(config.sparsifier, JumpReLU):
            theta = torch.tensor(config.sparsifier.theta)
            self.log_theta = nn.Parameter(theta.log().expand(n, f).clone())
        else:
            self.log_theta = None
        if config.zero_cross_init:
            with torch.no_grad():
                for decoder in self.W_dec:
                    decoder[1:] = 0

    def encode(self, x: Float[Tensor, "*layer_token d_model"], layer: int | None = None) -> Codes:
        """Codes of MLP inputs, of all layers ("layer *token d_model") or of one ("*token d_model").

        Args:
            x: LayerNorm 2 outputs, raw units.
            layer: encode `x` as this source layer alone; None takes the first axis as layers.

        Raises:
            InputError: the width or the number of layers does not fit this CLT.
        """
        if layer is not None:
            return self._encode_one(x, self._check_layer("layer", layer))
        if x.ndim < 2:
            raise InputError(f"x has {x.ndim} axes; expected at least layer and d_model.")
        if x.shape[0] != self.config.n_layers:
            raise InputError(
                f"x has {x.shape[0]} entries on its layer axis; expected {self.config.n_layers}."
            )
        return stack_codes([self._encode_one(x_s, s) for s, x_s in enumerate(x)])

    def decode(
        self, codes: Codes | Sequence[Codes], target: int | None = None
    ) -> Float[Tensor, "*layer_token d_model"]:
        """Reconstruction y^ in raw units: "layer *token d_model", or one target's "*token d_model".

        Args:
            codes: codes of all layers; with `target` l, those of layers 0..l are enough.
            target: decode this layer alone.
        """
        if target is not None:
            target = self._check_layer("target", target)
            self._check_codes(codes, target + 1)
            terms = (self._term(codes[s], s, target) for s in range(target + 1))
            return sum(terms, start=self.b_dec[target])
        self._check_codes(codes, self.config.n_layers)
        outputs: list[Tensor] = list(self.b_dec)
        for s, decoder in enumerate(self.W_dec):
            z = codes[s].to_dense()
            for l, W in enumerate(decoder.unbind(0), start=s):
                outputs[l] = outputs[l] + z @ W
        return torch.stack(outputs)

    def contributions(
        self, codes: Codes | Sequence[Codes], target: int
    ) -> Float[Tensor, "source *token d_model"]:
        """The terms c_{s->l} = z_s W_dec[s->l] of one target, sources 0..l.

        y^_l == terms.sum(0) + b_dec[l]. z_s reads everything in the stream up to depth s: a term
        says from which depth y_l can be sparsely read, not what MLP_s contributed.
        """
        target = self._check_layer("target", target)
        self._check_codes(codes, target + 1)
        return torch.stack([self._term(codes[s], s, target) for s in range(target + 1)])

    def forward(
        self, x: Float[Tensor, "layer *token d_model"]
    ) -> Float[Tensor, "layer *token d_model"]:
        """decode(encode(x))."""
        return self.decode(self.encode(x))

    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        """Norm of each feature's decoder over all its targets together."""
        return torch.stack([decoder.square().sum((0, 2)).sqrt() for decoder in self.W_dec])

    @torch.no_grad()
    def rescale_(self, x: Float[Tensor, " layer"], y: Float[Tensor, " layer"]) -> None:
        """Fold normalisation in: a CLT trained on (x * x_l, y * y_l) then maps raw to raw units."""
        for s, (encoder, decoder) in enumerate(zip(self.W_enc, self.W_dec, strict=True)):
            encoder.mul_(x[s])
            decoder.div_(y[s:, None, None])
        self.b_dec.div_(y[:, None])

    def forget_teacher(self) -> None:
        """Let this CLT attach to any ViT it fits, also one that is not its teacher."""
        self.config = replace(self.config, teacher=None)

    def _encode_one(self, x: Tensor, layer: int) -> Codes:
        if x.shape[-1] != self.config.d_model:
            raise InputError(f"x has width {x.shape[-1]}; expected d_model, {self.config.d_model}.")
        pre = nn.functional.linear(x.to(self.b_enc.dtype), self.W_enc[layer], self.b_enc[layer])
        theta = None if self.log_theta is None else self.log_theta[layer]
        return self.config.sparsifier(pre, theta)

    def _term(self, codes: Codes, source: int, target: int) -> Tensor:
        return codes.to_dense() @ self.W_dec[source][target - source]

    def _check_codes(self, codes: Codes | Sequence[Codes], n_sources: int) -> None:
        if len(codes) < n_sources:
            raise InputError(f"codes has {len(codes)} layers; expected at least {n_sources}.")
        if codes[0].n_features != self.config.n_features:
            raise InputError(
                f"codes have {codes[0].n_features} features; expected {self.config.n_features}."
            )

    def _check_layer(self, name: str, layer: int) -> int:
        n = self.config.n_layers
        if not -n <= layer < n:
            raise InputError(f"{name} is {layer}; expected a layer from 0 to {n - 1}.")
        return layer % n


def _uniform(shape: tuple[int, ...], bound: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
