"""One pass of a batch with every MLP replaced by a CLT, and overwritten passes that go on from it.

The surrogate is the ViT with the reconstructions of a CLT in the place of all its MLPs, on all
rows, with codes from the live stream and no error nodes. An output is overwritten after the
reconstruction wrote it, so that an overwritten row holds the same values as in the ViT itself.

Below the first overwritten layer s nothing is altered: the stream that enters block s, and what
sources below s write to deeper targets, are computed once for a batch. Outputs equal those of whole
passes within float rounding, as sums associate differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.choices import Site, TokenKind
from vit_clt.hooks.blocks import idle_mlps
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.interventions import overwrite_attn_hooks, overwrite_rows
from vit_clt.hooks.passes.overwritten import Overwrite, SitePass, Values
from vit_clt.hooks.points import HOOK_OUT, READ_IN, RESID_PRE, FwdHooks
from vit_clt.hooks.replacement import replacement_hooks
from vit_clt.hooks.rows import layer_list
from vit_clt.kernels.codes import Codes
from vit_clt.transcoder.model import CrossLayerTranscoder


class SurrogatePass(SitePass):
    """A pass of one batch through the surrogate; what is kept of it is the surrogate's own.

    A saved CLT should be checked against the model with `check_fits(vit, clt)` first.

    Args:
        vit: the model, with no hooks attached.
        images: one batch of images.
        clt: the transcoder, cross-layer or per-layer.
        site: "mlp" or "attn", the part of a block whose output is overwritten; of an MLP it is the
            reconstruction.
        ablated: token rows that are overwritten.

    Raises:
        InputError: hooks are attached, an unknown site or token kind, or images of another shape.
    """

    embeddings: Float[Tensor, "batch d_embed"]
    """Image embeddings of the surrogate, not normalised."""

    @torch.no_grad()
    def __init__(
        self,
        vit: HookedViT,
        images: Float[Tensor, "batch 3 height width"],
        clt: CrossLayerTranscoder,
        *,
        site: Site = "mlp",
        ablated: TokenKind = "all",
    ):
        self.clt = clt
        keep = {READ_IN: range(vit.cfg.n_layers)}
        super().__init__(vit, images, site=site, ablated=ablated, keep=keep)

    def l0(self) -> float:
        """Active features a token row and layer in the unaltered surrogate, over all rows."""
        layers = range(self.vit.cfg.n_layers)
        codes = (self.clt.encode(self.at(READ_IN, s), layer=s) for s in layers)
        return fmean(float(each.l0().double().mean()) for each in codes)

    @torch.no_grad()
    def total_on_output(
        self, overwrites: Sequence[Overwrite]
    ) -> Iterator[tuple[int, Float[Tensor, "batch d_embed"]]]:
        """Embeddings with these layers' rows overwritten and everything downstream recomputed.

        Codes and reconstructions are recomputed too.

        Yields:
            The number of each entry of `overwrites` and its embeddings, by ascending first layer.

        Raises:
            InputError: a layer out of range, or values of another number of rows.
        """
        n = self.vit.cfg.n_layers
        by_number = {i: (layer_list(layers, n), v) for i, (layers, v) in enumerate(overwrites)}
        # the sum of the terms of sources below the first overwritten layer at each deeper target
        below: dict[int, Tensor] = {}
        n_added = 0
        for i, (layers, values) in sorted(by_number.items(), key=lambda entry: entry[1][0][0]):
            for s in range(n_added, layers[0]):
                self._add_source(below, s)
            n_added = max(n_added, layers[0])
            yield i, self._altered(layers, values, below)

    def _forward(self, images: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        recorded: dict[str, Tensor] = {}

        def record(value: Tensor, hook: HookPoint) -> None:
            recorded[str(hook.name)] = value

        replaced = replacement_hooks(self.clt, layers=range(self.vit.cfg.n_layers))
        recording = [(name, record) for name in names]
        # the MLPs are found to be idle before a second hook stands at their outputs
        with (
            self.vit.hooks(fwd_hooks=replaced),
            idle_mlps(self.vit.blocks),
            self.vit.hooks(fwd_hooks=recording),
        ):
            return self.vit(images), recorded

    def _add_source(self, below: dict[int, Tensor], source: int) -> None:
        codes = {source: self.clt.encode(self.at(READ_IN, source), layer=source)}
        below.pop(source, None)
        for target in self.clt.config.targets(source)[1:]:
            term = self.clt.contributions(codes, target)[0]
            below[target] = below[target].add_(term) if target in below else term

    def _altered(
        self, layers: list[int], values: Values | None, below: dict[int, Tensor]
    ) -> Tensor:
        later = range(layers[0], self.vit.cfg.n_layers)
        overwritten = layers if self.site == "mlp" else []
        # where all rows are overwritten nothing is rebuilt
        rebuilt = [l for l in later if l not in overwritten or self.ablated != "all"]
        sources = [s for s in self.clt.config.sources(*rebuilt) if s in later]
        live: dict[int, Codes] = {}
        inputs: dict[int, Tensor] = {}

        def read(x: Tensor, hook: HookPoint, layer: int) -> None:
            inputs[layer] = x
            live[layer] = self.clt.encode(x, layer=layer)

        def write(y: Tensor, hook: HookPoint, layer: int) -> Tensor:
            if layer in rebuilt:
                recon = self.clt.decode(live, target=layer, x=inputs.pop(layer))
                y = (recon + below[layer] if layer in below else recon).to(y.dtype)
            if layer not in overwritten:
                return y
            value = None if values is None else values[layer]
            return overwrite_rows(y, self._rows, value, HOOK_OUT.format(l=layer))

        hooks: FwdHooks = [(READ_IN.format(l=s), partial(read, layer=s)) for s in sources]
        hooks += [(HOOK_OUT.format(l=l), partial(write, layer=l)) for l in later]
        if self.site == "attn":
            hooks += overwrite_attn_hooks(layers, self.ablated, values)
        return self.from_layer(layers[0], self.at(RESID_PRE, layers[0]), hooks, later)
