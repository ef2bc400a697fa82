"""One clean pass of a batch, and altered passes that go on from it.

Nothing below the first altered layer changes, so that the clean pass runs once for a batch, and
every altered pass runs only the blocks from its first altered layer on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.hooks.blocks import idle_mlps
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.interventions import check_unhooked
from vit_clt.hooks.points import RESID_MID, FwdHook

Keep = Mapping[str, Iterable[int]]
"""The layers whose activation is kept, by hook point (a name of `vit_clt.hooks.points`)."""


class CleanPass:
    """The clean pass of one batch, with the activations of `keep`.

    Hooks attached to `vit` do not fire in it, and passes that go on from it refuse them: parts of
    a forward are shared, so that a hook would fire in some forwards only.

    Args:
        vit: the model.
        images: one batch of images.
        keep: hook points and layers whose activations are kept.

    Raises:
        InputError: images of another shape.
    """

    embeddings: Float[Tensor, "batch d_embed"]
    """`vit(images)` bit for bit, not normalised."""

    @torch.no_grad()
    def __init__(self, vit: HookedViT, images: Float[Tensor, "batch 3 height width"], keep: Keep):
        self.vit = vit
        self.embeddings, self._kept = self._forward(images, _names(keep))

    def at(self, point: str, layer: int) -> Float[Tensor, "batch row d_model"]:
        """The activation at a hook point of a layer, which must be among those kept."""
        return self._kept[point.format(l=layer)]

    def at_rows(self, rows: slice, keep: Keep) -> CleanPass:
        """This pass with copies of only these activations on these rows; the rest can be freed."""
        part = copy(self)
        part._kept = {name: self._kept[name][:, rows].contiguous() for name in _names(keep)}
        return part

    def _forward(self, images: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The embeddings and the activations to keep; a subclass may run another model."""
        return self.vit.run_clean(images, names)

    @property
    def nbytes(self) -> int:
        """Bytes of the activations kept."""
        return sum(activation.nbytes for activation in self._kept.values())

    def from_layer(
        self,
        layer: int,
        resid_pre: Float[Tensor, "_batch row d_model"],
        hooks: Sequence[FwdHook] = (),
        idle: Iterable[int] = (),
    ) -> Float[Tensor, "_batch d_embed"]:
        """The embeddings if this residual stream enters block `layer`; blocks below do not run.

        Args:
            layer: the first block that runs; `n_layers` runs none, only `vit.head`.
            resid_pre: the residual stream before that block, of any number of images.
            hooks: hooks of this forward.
            idle: layers whose MLP is not computed, because the last of `hooks` at `hook_mlp_out`
                overwrites all its rows.

        Raises:
            InputError: a hook is attached already.
        """
        check_unhooked(self.vit)
        if layer == self.vit.cfg.n_layers:
            return self.vit.head(resid_pre)
        with self.vit.hooks(fwd_hooks=hooks), idle_mlps(self.vit.blocks[l] for l in idle):
            return self.vit(resid_pre, start_at_layer=layer)

    def from_mlp(
        self,
        layer: int,
        y: Float[Tensor, "_batch row d_model"],
        hooks: Sequence[FwdHook] = (),
        idle: Iterable[int] = (),
    ) -> Float[Tensor, "_batch d_embed"]:
        """The embeddings if the MLP of `layer` puts out `y`; only what follows it runs.

        Args:
            layer: a layer whose `hook_resid_mid` is kept.
            y: the MLP output, before LayerScale, on the rows kept, for the batch or for several
                versions of it one after another.
            hooks: as in `from_layer`.
            idle: as in `from_layer`.

        Raises:
            InputError: a hook is attached already.
        """
        resid_mid = self.at(RESID_MID, layer)
        versions = y.unflatten(0, (-1, len(resid_mid)))
        resid = self.vit.blocks[layer].add_mlp(resid_mid, versions).flatten(0, 1)
        return self.from_layer(layer + 1, resid, hooks, idle)


def _names(keep: Keep) -> list[str]:
    return [point.format(l=l) for point, layers in keep.items() for l in layers]
