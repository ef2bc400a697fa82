"""The cross-layer transcoder: a sparse, linear-in-its-codes stand-in for every MLP of a ViT.

    z_s   = sparsify(W_enc[s] x_s + b_enc[s])
    y^_l  = b_dec[l] + sum over s <= l of c_{s->l},    c_{s->l} = z_s W_dec[s->l]

x_l is the MLP's input at layer l (LayerNorm 2's output), y_l its output (arXiv 2604.13304). The
decoder of source s is stored as one tensor `W_dec[s]` "target feature d_model" whose first axis
runs over targets s, s+1, ..., n_layers-1, so that no zero block is kept.

With `CLTConfig(cross_layer=False)` it is a per-layer transcoder: c_{s->l} is 0 for s < l, and
`W_dec[s]` has the one target s.

With `CLTConfig(skip=True)` there is a skip connection (Paulo et al. 2025): y^_l has one more term,
W_skip[l] x_l, of its own layer's input alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_clt.choices import Backend, check_choice
from vit_clt.errors import InputError
from vit_clt.kernels.choose import choose
from vit_clt.kernels.codes import Codes, stack_codes
from vit_clt.kernels.dense import decode_dense
from vit_clt.kernels.sparse import decode_entries
from vit_clt.transcoder.adjoint import DecodeAdjoint
from vit_clt.transcoder.checkpoints import PretrainedCLT
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.sparsifiers.base import Encoder


class CrossLayerTranscoder(PretrainedCLT):
    """A CLT, its parameters public.

    W_enc[s] "feature d_model", b_enc "layer feature", W_dec[s] "target feature d_model" (targets
    `config.targets(s)`), b_dec "layer d_model", with a skip W_skip "layer d_model d_model" (else
    None), and the sparsifier's own (`own_tensors`): log_theta "layer feature" for JumpReLU (else
    None).
    `backend` says how codes are computed and read: "dense", "sparse" or, from shape and density,
    "auto"; all three are exact, and the attribute may be changed at any time
    (`vit_clt.kernels.choose`).
    Weights start at W_enc ~ U(+-1/sqrt(F)), W_dec ~ U(+-1/sqrt(L d)), biases and W_skip 0 (our
    choice; the paper is silent). Per layer W_dec ~ U(+-1/sqrt(d)): y^ of the last layer, which a
    CLT sums over L sources, starts at the same scale when one source alone makes it.
    """

    log_theta: nn.Parameter | None
    W_skip: nn.Parameter | None

    def __init__(self, config: CLTConfig, backend: Backend = "auto"):
        super().__init__()
        self.config = config
        self.backend = backend
        n, f, d = config.n_layers, config.n_features, config.d_model
        self.W_enc = nn.ParameterList(_uniform((f, d), 1 / sqrt(f)) for _ in range(n))
        self.b_enc = nn.Parameter(torch.zeros(n, f))
        # L terms of variance 1/(3 L d) a feature sum to the variance of the one term per layer
        bound = 1 / sqrt((n if config.cross_layer else 1) * d)
        shapes = [(len(config.targets(s)), f, d) for s in range(n)]
        self.W_dec = nn.ParameterList(_uniform(shape, bound) for shape in shapes)
        self.b_dec = nn.Parameter(torch.zeros(n, d))
        self.W_skip = nn.Parameter(torch.zeros(n, d, d)) if config.skip else None
        self.log_theta = None
        own = config.sparsifier.tensors(n, f)
        self._own = tuple(own)
        for name, tensor in own.items():
            if isinstance(tensor, nn.Parameter):
                setattr(self, name, tensor)
            else:
                self.register_buffer(name, tensor)
        if config.zero_cross_init:
            with torch.no_grad():
                for decoder in self.W_dec:
                    decoder[1:] = 0

    @property
    def backend(self) -> Backend:
        """The back end asked for."""
        return self._backend

    @backend.setter
    def backend(self, backend: Backend) -> None:
        check_choice("backend", backend, get_args(Backend))
        self._backend = backend

    def encode(self, x: Float[Tensor, "*layer_token d_model"], layer: int | None = None) -> Codes:
        """Codes of MLP inputs, of all layers (`layer *token d_model`) or of one (`*token d_model`).

        Args:
            x: LayerNorm 2 outputs, raw units.
            layer: encode `x` as this source layer alone; None takes the first axis as layers.

        Raises:
            InputError: the width or the number of layers does not fit this CLT.
        """
        if layer is not None:
            return self._encode([(self._check_layer("layer", layer), x)])[0]
        return stack_codes(self._encode(self._layers(x)))

    def encode_batch(self, x: Float[Tensor, "layer *token d_model"]) -> Codes:
        """Codes of all layers as a training step forms them.

        They differ from those of `encode` where a sparsifier's training looks at all rows at once.

        Raises:
            InputError: the width or the number of layers does not fit this CLT.
        """
        return stack_codes(self._encode(self._layers(x), batch=True))

    def own_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the sparsifier, layer first, by name."""
        return {name: getattr(self, name) for name in self._own}

    def thresholds(self) -> Float[Tensor, "layer feature"] | None:
        """theta, where z = a 1[a > theta] are this CLT's codes; None where no thresholds are."""
        return self.config.sparsifier.thresholds(self.own_tensors(), self.config.n_features)

    def decode(
        self,
        codes: Codes | Sequence[Codes] | Mapping[int, Codes],
        target: int | None = None,
        x: Float[Tensor, "*layer_token d_model"] | None = None,
    ) -> Float[Tensor, "*layer_token d_model"]:
        """Reconstruction y^ in raw units: `layer *token d_model`, or one target's `*token d_model`.

        Args:
            codes: codes of all layers; with `target` l, those of layers 0..l are enough, or codes
                by source layer, where the sources left out are silent.
            target: decode this layer alone.
            x: the MLP inputs of the layers decoded, in the shape of the result, which a skip
                connection reads; nothing else does.

        Raises:
            InputError: a layer out of range, missing or too deep, codes of another width, or no
                `x` of these tokens for a skip connection.
        """
        if target is None:
            sources = self._check_codes(codes, self.config.n_layers)
            y_hat = self._decode(codes, sources, 0, self.b_dec)
            if self.W_skip is None:
                return y_hat
            inputs = enumerate(self._check_skipped(x, y_hat))
            return y_hat + torch.stack([self.skip_term(each, l) for l, each in inputs])
        target = self._check_layer("target", target)
        sources = self._check_codes(codes, target + 1)
        y_hat = self._decode(codes, sources, target, self.b_dec[target : target + 1])[0]
        if self.W_skip is None:
            return y_hat
        return y_hat + self.skip_term(self._check_skipped(x, y_hat), target)

    def decode_prefixes(
        self,
        codes: Codes,
        prefixes: Sequence[int],
        x: Float[Tensor, "layer *token d_model"] | None = None,
    ) -> Iterator[Float[Tensor, "layer *token d_model"]]:
        """y^ of the features below each of `prefixes` of every layer, then y^ of all of them.

        Each y^ is the one before with the terms of the further features added, so that all of them
        together cost about as many products of entries as the last.

        Args:
            codes: codes of all layers.
            prefixes: numbers of features, ascending.
            x: as in `decode`.

        Raises:
            InputError: as `decode`.
        """
        if not prefixes:
            yield self.decode(codes, x=x)
            return
        nothing = torch.zeros_like(self.b_dec)
        y_hat = self.decode(codes.between(0, prefixes[0]), x=x)
        yield y_hat
        for first, stop in pairwise([*prefixes, self.config.n_features]):
            part = codes.between(first, stop)
            y_hat = y_hat + self._decode(part, range(self.config.n_layers), 0, nothing)
            yield y_hat

    def skip_term(
        self, x: Float[Tensor, "*token d_model"], layer: int
    ) -> Float[Tensor, "*token d_model"]:
        """W_skip[l] x_l, the term of the skip connection at one layer.

        Raises:
            InputError: a layer out of range, or this CLT has no skip connection.
        """
        layer = self._check_layer("layer", layer)
        if self.W_skip is None:
            raise InputError("clt", "has no skip connection; expected one with it.")
        return nn.functional.linear(x.to(self.W_skip.dtype), self.W_skip[layer])

    def contributions(
        self, codes: Codes | Sequence[Codes] | Mapping[int, Codes], target: int
    ) -> Float[Tensor, "source *token d_model"]:
        """The terms c_{s->l} = z_s W_dec[s->l] of one target, sources 0..l, or those in a mapping.

        With all of them y^_l == terms.sum(0) + b_dec[l], and with a skip connection + `skip_term`;
        per layer all but source l's are 0. z_s reads everything in the stream up to
        depth s: a term says from which depth y_l can be sparsely read, not what MLP_s contributed.
        """
        target = self._check_layer("target", target)
        sources = self._check_codes(codes, target + 1)
        nothing = torch.zeros_like(self.b_dec[:1])
        return torch.cat([self._decode(codes, [s], target, nothing) for s in sources])

    def decoder(self, source: int, target: int) -> Float[Tensor, "feature d_model"]:
        """W_dec[s->l]: row i is what a unit of feature (s, i) adds to y^_l; a view.

        Raises:
            InputError: a layer out of range, or a target that the source does not write to.
        """
        s, l = self._check_layer("source", source), self._check_layer("target", target)
        targets = self.config.targets(s)
        if l not in targets:
            raise InputError(
                "target",
                f"is {l}; expected a layer that source {s} writes to, from {targets[0]} to "
                f"{targets[-1]}.",
            )
        return self.W_dec[s][l - s]

    def decode_adjoint(self, codes: Codes, source: int) -> DecodeAdjoint:
        """The adjoint of `decode` for one source's codes: gradients at y_l to one number an entry.

        Entry (token t, feature i) gets sum over targets l of <W_dec[s->l]_i, G_l[t]>.

        Args:
            codes: of this source alone, "*token feature".
            source: its layer.

        Raises:
            InputError: a layer out of range, or codes of another width.
        """
        s = self._check_layer("source", source)
        self._check_codes({s: codes}, self.config.n_layers)
        return DecodeAdjoint(codes, self.W_dec[s], self.config.targets(s))

    def forward(
        self, x: Float[Tensor, "layer *token d_model"]
    ) -> Float[Tensor, "layer *token d_model"]:
        """decode(encode(x), x=x)."""
        return self.decode(self.encode(x), x=x)

    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        """Norm of each feature's decoder over all its targets together."""
        return torch.stack([decoder.square().sum((0, 2)).sqrt() for decoder in self.W_dec])

    @torch.no_grad()
    def rescale_(self, x: Float[Tensor, " layer"], y: Float[Tensor, " layer"]) -> None:
        """Fold normalisation in: a CLT trained on (x * x_l, y * y_l) then maps raw to raw units."""
        for s, (encoder, decoder) in enumerate(zip(self.W_enc, self.W_dec, strict=True)):
            encoder.mul_(x[s])
            decoder.div_(y[s : s + len(decoder), None, None])
        self.b_dec.div_(y[:, None])
        if self.W_skip is not None:
            self.W_skip.mul_((x / y)[:, None, None])

    def forget_teacher(self) -> None:
        """Let this CLT attach to any ViT it fits, also one that is not its teacher."""
        self.config = replace(self.config, teacher=None)

    def backend_for(self, codes: Codes) -> Literal["dense", "banded", "sparse"]:
        """The back end that decodes `codes`."""
        if codes.layout == "dense" or not self._is_sparse(codes.density()):
            return "dense"
        return codes.layout

    def _layers(self, x: Tensor) -> list[tuple[int, Tensor]]:
        if x.ndim < 2:
            raise InputError("x", f"has {x.ndim} axes; expected at least layer and d_model.")
        if x.shape[0] != self.config.n_layers:
            raise InputError(
                "x", f"has {x.shape[0]} entries on its layer axis; expected {self.config.n_layers}."
            )
        return list(enumerate(x))

    def _encode(self, layers: Sequence[tuple[int, Tensor]], batch: bool = False) -> list[Codes]:
        d, own = self.config.d_model, self.own_tensors()
        for _, x in layers:
            if x.shape[-1] != d:
                raise InputError("x", f"has width {x.shape[-1]}; expected d_model, {d}.")
        encoders = [
            Encoder(
                x.to(self.b_enc.dtype),
                self.W_enc[s],
                self.b_enc[s],
                {name: tensor[s] for name, tensor in own.items()},
            )
            for s, x in layers
        ]
        sparsifier = self.config.sparsifier
        encode = sparsifier.encode_batch if batch else sparsifier.encode
        return encode(encoders, self.backend)

    def _decode(
        self,
        codes: Codes | Sequence[Codes] | Mapping[int, Codes],
        sources: Iterable[int],
        first: int,
        bias: Tensor,
    ) -> Tensor:
        """Terms of `sources` and `bias`, for targets first, first + 1, ... one per row of bias."""
        available: dict[int, Codes] = {s: codes[s] for s in sources}
        tokens = next(iter(available.values())).tokens
        targets = range(first, first + len(bias))
        # per layer most sources write to none of them, and cost nothing
        chosen = {s: each for s, each in available.items() if self._writes_to(s, targets)}
        sparse = {
            s: each.entries() for s, each in chosen.items() if self.backend_for(each) != "dense"
        }
        if sparse:
            out = decode_entries(sparse, list(self.W_dec), bias, first)
            out = out.view(len(bias), *tokens, bias.shape[-1])
        else:
            out = bias.view(len(bias), *[1] * len(tokens), bias.shape[-1])
        rest = {s: each for s, each in chosen.items() if s not in sparse}
        if rest:
            return decode_dense(rest, list(self.W_dec), out, first)
        return out if sparse else out.expand(len(bias), *tokens, bias.shape[-1]).clone()

    def _check_skipped(self, x: Tensor | None, y_hat: Tensor) -> Tensor:
        """The inputs of a skip connection, of the same layers and tokens as `y_hat`."""
        if x is None:
            raise InputError(
                "x", "is None; expected the MLP inputs, which the skip connection of the CLT reads."
            )
        if x.shape != y_hat.shape:
            raise InputError(
                "x",
                f"has shape {tuple(x.shape)}; expected {tuple(y_hat.shape)}, that of the "
                "reconstruction.",
            )
        return x

    def _writes_to(self, source: int, targets: range) -> bool:
        return any(l in targets for l in self.config.targets(source))

    def _is_sparse(self, density: float) -> bool:
        config, weight = self.config, self.b_enc
        return choose(self.backend, config.n_features, config.d_model, density, weight) == "sparse"

    def _check_codes(
        self, codes: Codes | Sequence[Codes] | Mapping[int, Codes], n_sources: int
    ) -> Sequence[int]:
        """The sources to decode, of those that targets below `n_sources` can read."""
        if not isinstance(codes, Mapping):
            if len(codes) < n_sources:
                raise InputError(
                    "codes", f"has {len(codes)} layers; expected at least {n_sources}."
                )
            sources: Sequence[int] = range(n_sources)
        else:
            sources = sorted(codes)
            if not sources or sources[0] < 0 or sources[-1] >= n_sources:
                raise InputError(
                    "codes",
                    f"has source layers {sources}; expected some from 0 to {n_sources - 1}.",
                )
        width = codes[sources[0]].n_features
        if width != self.config.n_features:
            raise InputError("codes", f"have {width} features; expected {self.config.n_features}.")
        return sources

    def _check_layer(self, name: str, layer: int) -> int:
        n = self.config.n_layers
        if not -n <= layer < n:
            raise InputError(name, f"is {layer}; expected a layer from 0 to {n - 1}.")
        return layer % n


def _uniform(shape: tuple[int, ...], bound: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
