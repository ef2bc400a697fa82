"""One unaltered pass of a batch, and passes that go on from it.

Nothing below the first altered layer changes, so that the unaltered model runs once a batch, and
every altered pass runs only what follows.
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
"""Hook points (names of `vit_clt.hooks.points`), and of which layers each is kept."""


class CleanPass:
    """The unaltered pass of one batch: the activations asked for, and no others.

    Hooks attached to `vit` do not fire in it, and passes that go on from it refuse them: parts of
    each forward are shared, so that a hook would fire in some of them only.

    Args:
        vit: the model.
        images: one batch.
        keep: activations that are kept.

    Raises:
        InputError: images of another shape.
    """

    embeddings: Float[Tensor, "batch d_embed"]
    """`vit(images)` bit for bit, not normalised."""

    @torch.no_grad()
    def __init__(self, vit: HookedViT, images: Float[Tensor, "batch 3 height width"], keep: Keep):
        self.vit = vit
        self.embeddings, self._kept = vit.run_clean(images, _names(keep))

    def at(self, point: str, layer: int) -> Float[Tensor, "batch row d_model"]:
        """The activation at a hook point of a layer; it must be one of those kept."""
        return self._kept[point.format(l=layer)]

    def at_rows(self, rows: slice, keep: Keep) -> CleanPass:
        """Some activations on some token rows, copied: the others need not stay in memory."""
        part = copy(self)
        part._kept = {name: self._kept[name][:, rows].contiguous() for name in _names(keep)}
        return part

    @property
    def nbytes(self) -> int:
        """Memory of the activations kept."""
        return sum(each.nbytes for each in self._kept.values())

    def from_layer(
        self,
        layer: int,
        resid_pre: Float[Tensor, "_batch row d_model"],
        hooks: Sequence[FwdHook] = (),
        idle: Iterable[int] = (),
    ) -> Float[Tensor, "_batch d_embed"]:
        """The embeddings where this stream enters block `layer`; blocks below do not run.

        Args:
            layer: the first block that runs; the number of layers runs none, only `vit.head`.
            resid_pre: the stream before that block, of any number of images.
            hooks: attached meanwhile.
            idle: layers whose MLP is left out, because the last of `hooks` at `hook_mlp_out`
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
        """The embeddings where MLP_layer puts out `y`, and only what follows runs again.

        Args:
            layer: one whose `hook_resid_mid` is kept.
            y: what its MLP puts out, before LayerScale, on the rows kept: of the batch, or of
                several versions of it one after another.
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
