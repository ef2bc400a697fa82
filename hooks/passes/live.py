"""Passes of the replaced stream in which what one source layer writes is changed.

Every MLP is replaced, at all rows, by its reconstruction with the error node held:

    y_l' = y_l + (y^_l(codes') - y^_l(codes))

y_l and the codes are those of the clean pass, the codes' those of the live stream. Unaltered, this
is the ViT bit for bit. If the codes of source s change by dz, its terms change by dz W_dec[s->l] at
every target l >= s, and the codes of the layers above s answer to the altered stream, as a skip
connection's W_skip[l] (x_l' - x_l) does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.hooks.blocks import scaled
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.interventions import check_unhooked
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, READ_IN, RESID_MID, RESID_POST, FwdHooks
from vit_clt.kernels.codes import Codes
from vit_clt.transcoder.model import CrossLayerTranscoder

Change = Mapping[int, Float[Tensor, "batch row d_model"]]
"""By target, what is added to its reconstruction on some rows."""


@dataclass(frozen=True)
class ChangedPass:
    """A forward with the terms of one source changed, and everything above it live."""

    embeddings: Float[Tensor, "batch d_embed"]
    """Image embeddings, not normalised, as those of `vit(images)`."""
    moved: dict[int, Float[Tensor, "batch token d_model"]]
    """y_l' - y_l of every layer l from the source on."""


class LivePass(CleanPass):
    """The clean pass of one batch; passes with a source's terms changed go on from it.

    A saved CLT should be checked against the model with `check_fits(vit, clt)` first.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        images: one batch of images.

    Raises:
        InputError: hooks are attached, or images of another shape.
    """

    @torch.no_grad()
    def __init__(
        self,
        vit: HookedViT,
        clt: CrossLayerTranscoder,
        images: Float[Tensor, "batch 3 height width"],
    ):
        check_unhooked(vit)
        layers = range(vit.cfg.n_layers)
        points = (RESID_MID, HOOK_IN, HOOK_OUT)
        super().__init__(vit, images, dict.fromkeys(points, layers) | {RESID_POST: layers[-1:]})
        self.clt = clt
        self.codes: list[Codes] = [clt.encode(self.at(HOOK_IN, l), layer=l) for l in layers]
        """The codes of every layer, on all rows."""
        self._recon: dict[int, Tensor] = {}

    def y(self, layer: int) -> Float[Tensor, "batch token d_model"]:
        """y_l of the clean pass, on all rows."""
        return self.at(HOOK_OUT, layer)

    @torch.no_grad()
    def changed(self, source: int, change: Change, rows: slice) -> ChangedPass:
        """A forward with this change of the source's terms, and the codes above it live.

        Args:
            source: the layer whose codes change; blocks below its MLP do not run again.
            change: dz W_dec[s->l] for every target l of the source.
            rows: the token rows of `change`.
        """
        codes = dict(enumerate(self.codes[: source + 1]))
        inputs: dict[int, Tensor] = {}
        moved: dict[int, Tensor] = {}

        def write(layer: int) -> Tensor:
            y = self.at(HOOK_OUT, layer)
            moved[layer] = torch.zeros_like(y)
            if layer > source:
                recon = self.clt.decode(codes, target=layer, x=inputs.pop(layer))
                moved[layer] += recon - self._clean_recon(layer)
            if layer in change:
                moved[layer][:, rows] += change[layer]
            return y + moved[layer]

        def read(x: Tensor, hook: HookPoint, layer: int) -> None:
            inputs[layer] = x
            codes[layer] = self.clt.encode(x, layer=layer)

        def overwrite(y: Tensor, hook: HookPoint, layer: int) -> Tensor:
            return write(layer)

        later = range(source + 1, self.vit.cfg.n_layers)
        hooks: FwdHooks = [(READ_IN.format(l=l), partial(read, layer=l)) for l in later]
        hooks += [(HOOK_OUT.format(l=l), partial(overwrite, layer=l)) for l in later]
        embeddings = self.from_mlp(source, write(source), hooks, idle=later)
        return ChangedPass(embeddings, moved)

    @torch.no_grad()
    def direct_on_output(self, change: Change, rows: slice) -> Float[Tensor, "batch d_embed"]:
        """Embeddings if only the final LayerNorm and pooling see the change; nothing else runs."""
        n = self.vit.cfg.n_layers
        resid = self.at(RESID_POST, n - 1).clone()
        for layer, dy in change.items():
            resid[:, rows] += scaled(dy, self.vit.blocks[layer].gamma2)
        return self.from_layer(n, resid)

    def _clean_recon(self, layer: int) -> Tensor:
        if layer not in self._recon:
            codes = dict(enumerate(self.codes[: layer + 1]))
            self._recon[layer] = self.clt.decode(codes, target=layer, x=self.at(HOOK_IN, layer))
        return self._recon[layer]
