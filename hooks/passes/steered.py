"""One clean pass of a batch, and steered passes that go on from it.

A steered pass does what `steer` does in the running model (every MLP replaced, with error nodes and
stream inputs), at less cost where a study makes many edits. With an error node
y_l' = y_l + sum over s of (z_s' - z_s) W_dec[s->l], with a skip + W_skip[l] (x_l' - x_l), and below
the first edit nothing changes: codes are not needed there, blocks do not run again, and an image
that no edit changes keeps its embedding.

Outputs equal those of `steer` within float rounding, as sums associate differently. Where two
features tie for the last place of a top-k code, rounding decides between them, in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.interventions import check_unhooked
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, READ_IN, RESID_PRE, FwdHooks
from vit_clt.hooks.rows import rows_unread
from vit_clt.hooks.steering import Edit, check_edits
from vit_clt.kernels.codes import Codes
from vit_clt.transcoder.model import CrossLayerTranscoder


class SteeredPass(CleanPass):
    """The clean pass of one batch; steered passes go on from it.

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
        points = (RESID_PRE, HOOK_IN, HOOK_OUT)
        super().__init__(vit, images, dict.fromkeys(points, range(vit.cfg.n_layers)))
        self.clt = clt
        self._codes: dict[int, Codes] = {}
        self._terms: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def steered(self, edits: Sequence[Edit]) -> Float[Tensor, "batch d_embed"]:
        """Embeddings with these features edited and everything downstream live, not normalised.

        A call is cheapest if its lowest edited layer is that of the call before.

        Raises:
            InputError: no edit, two of one feature and row, or one out of range.
        """
        layers = range(self.vit.cfg.n_layers)
        check_edits(self.clt, edits, layers=layers, rows=self.vit.cfg.rows)
        touched = torch.zeros(len(self.embeddings), dtype=torch.bool, device=self.embeddings.device)
        for edit in edits:
            z = self.codes(edit.layer).at_features(edit.features)
            touched |= (edit.apply(z, self.vit.cfg.rows) != z).flatten(1).any(1)
        out = self.embeddings.clone()
        if touched.any():
            out[touched] = _Steered(self, edits, touched).run()
        return out

    def codes(self, layer: int) -> Codes:
        """The codes of a layer in the clean pass."""
        if layer not in self._codes:
            self._codes[layer] = self.clt.encode(self.at(HOOK_IN, layer), layer=layer)
        return self._codes[layer]

    def terms(self, first: int, target: int) -> Float[Tensor, "batch token d_model"]:
        """The clean terms of the sources above `first` at `target`, summed, with bias and skip."""
        if (first, target) not in self._terms:
            # only those of one `first` are kept: all would take L times the activations
            self._terms = {at: term for at, term in self._terms.items() if at[0] == first}
            sources = [s for s in self.clt.config.sources(target) if s > first]
            codes = {s: self.codes(s) for s in sources}
            x = self.at(HOOK_IN, target)
            self._terms[first, target] = self.clt.decode(codes, target=target, x=x)
        return self._terms[first, target]


class _Steered:
    """One steered pass over the images that an edit changes."""

    def __init__(self, clean: SteeredPass, edits: Sequence[Edit], touched: Bool[Tensor, " batch"]):
        self.clean, self.edits, self.touched = clean, edits, touched
        self.vit, self.clt = clean.vit, clean.clt
        self.first = min(edit.layer for edit in edits)
        self.codes: dict[int, Codes] = {}
        # x_l of the layer in progress, for a skip connection
        self.x: Tensor | None = None
        self.changes: list[tuple[Edit, Tensor]] = []

    def run(self) -> Float[Tensor, "touched d_embed"]:
        layers = range(self.first, self.vit.cfg.n_layers)
        hooks: FwdHooks = [(READ_IN.format(l=l), partial(self._read, layer=l)) for l in layers]
        hooks += [(HOOK_OUT.format(l=l), partial(self._write, layer=l)) for l in layers]
        resid = self.clean.at(RESID_PRE, self.first)[self.touched]
        return self.clean.from_layer(self.first, resid, hooks, idle=layers)

    def _rows(self, layer: int) -> slice:
        cfg = self.vit.cfg
        unread = rows_unread("patch", layer, cfg.n_layers, cfg.pools_cls)
        return slice(0, 1) if unread else slice(None)

    def _read(self, x: Tensor, hook: HookPoint, layer: int) -> None:
        rows = self._rows(layer)
        if layer > self.first:
            self.x = x[:, rows]
            self.codes[layer] = self.clt.encode(self.x, layer=layer)
        for edit in (e for e in self.edits if e.layer == layer):
            z = x.new_zeros(*x.shape[:2], len(edit.features))
            if layer > self.first:
                z[:, rows] = self.codes[layer].at_features(edit.features).to(z)
            else:  # at the first edited layer the codes are the clean ones
                z = self.clean.codes(layer).at_features(edit.features)[self.touched]
            self.changes.append((edit, edit.apply(z, self.vit.cfg.rows) - z))

    def _write(self, y: Tensor, hook: HookPoint, layer: int) -> Tensor:
        rows = self._rows(layer)
        out = self.clean.at(HOOK_OUT, layer)[self.touched]
        change = torch.zeros_like(out[:, rows])
        live = {
            s: codes if s == layer else codes.at_rows(rows)
            for s, codes in self.codes.items()
            if layer in self.clt.config.targets(s)
        }
        if live:
            clean = self.clean.terms(self.first, layer)[self.touched]
            altered = self.clt.decode(live, target=layer, x=self.x)
            change = change + (altered - clean[:, rows])
        for edit, dz in self.changes:
            if layer in self.clt.config.targets(edit.layer):
                decoder = self.clt.decoder(edit.layer, layer)[list(edit.features)]
                change = change + dz[:, rows] @ decoder
        out[:, rows] += change
        return out
