"""What one image's frozen model is made of, and what each of its sources adds to a readout.

In the unaltered model y_l = b_dec[l] + sum_s z_s W_dec[s->l] + error_l exactly, the error being
y_l - y^_l on the teacher trajectory. With attention and norms held (`FrozenPass`), any reading of
the output or of an MLP's input is therefore a sum over active features, error nodes, patches and
constants, each a product of what it adds and a gradient:

    feature  z_i * sum_l W_dec[s->l]_i . G_l[row]        l in the targets of s that the reading sees
                                                         (`CrossLayerTranscoder.decode_adjoint`)
    error    error_l[row] . G_l[row]
    patch    patch[p] . G_in[1 + p]                      through residual stream and attention alone
    bias     class token, positions, and the biases of b_dec, LayerNorms and attention

These are direct effects: not by way of other features' activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.choices import Norms
from vit_clt.errors import InputError
from vit_clt.hooks import FrozenPass, HookedViT, Readout
from vit_clt.kernels.codes import Codes, DenseCodes
from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class SourceEffects:
    """What every source adds to a reading; layers the reading does not see add 0."""

    features: Float[Tensor, "*direction active"]
    errors: Float[Tensor, "*direction layer token"]
    patches: Float[Tensor, "*direction patch"]
    b_dec: Float[Tensor, "*direction layer"]
    attention: Float[Tensor, "*direction layer"]
    """Biases of ln_1, values and out_proj."""
    class_token: Float[Tensor, "*direction"]
    positions: Float[Tensor, "*direction"]
    ln_pre: Float[Tensor, "*direction"]
    reader: Float[Tensor, "*direction"]
    """The bias of the LayerNorm that is read: ln_post, or ln_2."""

    @property
    def bias(self) -> Float[Tensor, "*direction"]:
        """All that is no feature, error or patch."""
        layers = (self.b_dec + self.attention).sum(-1)
        return layers + self.class_token + self.positions + self.ln_pre + self.reader


class Sources:
    """Active features, errors, patches and biases of one image.

    Args:
        vit: the teacher.
        clt: its transcoder, which must fit (`check_fits`).
        image: one image, in the model's preprocessing.

    Raises:
        InputError: the CLT has a skip connection, which is none of these sources.
    """

    layer: Int[Tensor, " active"]
    """Of each active feature (z != 0), in order of layer and token."""
    token: Int[Tensor, " active"]
    feature: Int[Tensor, " active"]
    activation: Float[Tensor, " active"]
    errors: Float[Tensor, "layer token d_model"]
    """y_l - y^_l."""

    @torch.no_grad()
    def __init__(
        self, vit: HookedViT, clt: CrossLayerTranscoder, image: Float[Tensor, "3 height width"]
    ):
        if clt.config.skip:
            raise InputError(
                "clt",
                "has a skip connection, which passes on what it reads without a feature; expected "
                "one without, as graphs and direct effects name features alone.",
            )
        self.clt, self.image = clt, image
        self.frozen = FrozenPass(vit, image[None])
        x, y = self.frozen.x[:, 0], self.frozen.y[:, 0]
        self.codes: list[Codes] = [clt.encode(each, layer=s) for s, each in enumerate(x)]
        self.errors = y - clt.decode(self.codes).to(y)
        # written out first, so that a token's features ascend in every layout
        active = [DenseCodes(codes.to_dense()).active() for codes in self.codes]
        self._adjoints = [clt.decode_adjoint(each, s) for s, each in enumerate(active)]
        self.layer = torch.cat([torch.full_like(each.indices, s) for s, each in enumerate(active)])
        self.token = torch.cat([each.entries().rows for each in active])
        self.feature = torch.cat([each.indices for each in active])
        self.activation = torch.cat([each.values for each in active])

    def effects(self, readout: Readout) -> SourceEffects:
        """What each source adds to `readout` of this image."""
        frozen, n = self.frozen, self.frozen.vit.cfg.n_layers
        y, inputs = readout.y[..., 0, :, :], readout.inputs[..., 0, :, :]
        seen = y.shape[-3]
        attention = readout.attention_bias[..., 0]
        return SourceEffects(
            features=torch.cat([each.effects(y) for each in self._adjoints], dim=-1),
            errors=_padded((y * self.errors[:seen]).sum(-1), -2, n),
            patches=(inputs[..., 1:, :] * frozen.patches[0]).sum(-1),
            b_dec=_padded((y.sum(-2) * self.clt.b_dec[:seen]).sum(-1), -1, n),
            attention=_padded(attention, -1, n),
            class_token=inputs[..., 0, :] @ frozen.class_token,
            positions=(inputs * frozen.positions).sum((-2, -1)),
            ln_pre=readout.ln_pre_bias[..., 0],
            reader=readout.reader_bias[..., 0],
        )

    def logit(self, direction: Float[Tensor, " d_embed"]) -> Float[Tensor, ""]:
        """The model's own <e/||e||, direction>."""
        unit = F.normalize(self.frozen.embeddings[0], dim=-1)
        return unit @ direction.to(unit)

    @torch.no_grad()
    def terms(self, readout: Readout) -> Float[Tensor, "target source token"]:
        """<c_{s->l}[row], G_l[row]> of a reading of the output; 0 where s does not write to l."""
        n = self.clt.config.n_layers
        out = self.errors.new_zeros(n, n, self.errors.shape[1])
        for l in range(n):
            terms = self.clt.contributions(self.codes, target=l)
            out[l, : l + 1] = (terms * readout.y[l, 0].to(terms)).sum(-1)
        return out

    @torch.no_grad()
    def total_readout(self, direction: Float[Tensor, " d_embed"], norms: Norms = "held") -> Readout:
        """The reading of the output with the CLT in the MLPs' place, its active features held on.

        Gradients then run through features too: z_i = W_enc[s]_i x_s[row] + b_enc[s]_i for every
        active feature, the others stay silent. So a y gradient is the total effect of that row of
        y_l, in the linear model that the frozen one and the active features make.
        """
        n_layers, n_tokens, width = self.errors.shape

        def through(layer: int, y: Mapping[int, Tensor]) -> Tensor:
            here = self.layer == layer
            gradients = torch.stack([y[l][0] for l in range(layer, n_layers)])
            units = self._adjoints[layer].units(gradients, layer)
            encoders = self.clt.W_enc[layer][self.feature[here]]
            at_x = encoders.new_zeros(n_tokens, width)
            at_x.index_add_(0, self.token[here], units[:, None] * encoders)
            return at_x.to(self.errors)[None]

        return self.frozen.read_output(direction, through, norms)


def _padded(values: Tensor, axis: int, size: int) -> Tensor:
    """Zeros at the end of `axis` up to `size`."""
    shape = list(values.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([values, values.new_zeros(shape)], dim=axis)
