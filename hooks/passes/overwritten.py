"""One clean pass of a batch, and passes with outputs of its MLPs or attention overwritten.

What the MLP (or the attention layer) of block s puts out is added to the residual stream and read
by everything above. For the **total** effect its rows are overwritten in the running model and
everything downstream is recomputed. For the **direct** effect they are overwritten only in the
stream that one reader sees. The reader is MLP_l, through its LayerNorm,

    x_l' = LN2_l(resid_mid_l + ls_s(out_s') - ls_s(out_s)),    y_l' = MLP_l(x_l'),

or the output, through the final LayerNorm and pooling (ls_s is LayerScale, where a model has one).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.choices import Site, TokenKind, check_choice
from vit_clt.errors import InputError
from vit_clt.hooks.blocks import scaled
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.interventions import (
    check_unhooked,
    overwrite_attn_hooks,
    overwrite_mlp_hooks,
    overwrite_rows,
)
from vit_clt.hooks.passes.clean import CleanPass, Keep
from vit_clt.hooks.points import (
    HOOK_OUT,
    READ_IN,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    SITE_OUT,
    FwdHook,
    FwdHooks,
)
from vit_clt.hooks.rows import layer_list, token_rows

Values = Mapping[int, Float[Tensor, "*batch row d_model"]]


Overwrite = tuple[Sequence[int], Values | None]
"""Layers that are overwritten, and by layer what is written there; None for zeros."""


class SitePass(CleanPass):
    """The clean pass of one batch that keeps one output of every block, which can be overwritten.

    Args:
        vit: the model, with no hooks attached.
        images: one batch of images.
        site: "mlp" or "attn", the part of a block whose output is overwritten.
        ablated: token rows that are overwritten.
        keep: further hook points and layers whose activations are kept.

    Raises:
        InputError: hooks are attached, an unknown site or token kind, or images of another shape.
    """

    @torch.no_grad()
    def __init__(
        self,
        vit: HookedViT,
        images: Float[Tensor, "batch 3 height width"],
        *,
        site: Site = "mlp",
        ablated: TokenKind = "all",
        keep: Keep | None = None,
    ):
        check_unhooked(vit)
        check_choice("site", site, get_args(Site))
        self.site, self.ablated = site, ablated
        self._rows = token_rows(ablated, vit.cfg.rows)
        layers = range(vit.cfg.n_layers)
        own = dict.fromkeys((RESID_PRE, SITE_OUT[site]), layers) | {RESID_POST: layers[-1:]}
        super().__init__(vit, images, own | dict(keep or {}))

    @torch.no_grad()
    def total_on_output(
        self, overwrites: Sequence[Overwrite]
    ) -> Iterator[tuple[int, Float[Tensor, "batch d_embed"]]]:
        """Embeddings with these layers' rows overwritten and everything downstream recomputed.

        Yields:
            The number of each entry of `overwrites` and its embeddings, in any order.

        Raises:
            InputError: a layer out of range, or values of another number of rows.
        """
        for number, (layers, values) in enumerate(overwrites):
            yield number, self._overwritten(layer_list(layers, self.vit.cfg.n_layers), values)

    @torch.no_grad()
    def direct_on_output(
        self, layers: int | Iterable[int], values: Values | None = None
    ) -> Float[Tensor, "batch d_embed"]:
        """Embeddings if only the final LayerNorm and pooling see these layers overwritten.

        Raises:
            InputError: a layer out of range, or values of another number of rows.
        """
        n = self.vit.cfg.n_layers
        resid = self.at(RESID_POST, n - 1)
        for layer in layer_list(layers, n):
            resid = resid + self.stream_change(layer, values)
        return self.from_layer(n, resid)

    def stream_change(
        self, layer: int, values: Values | None
    ) -> Float[Tensor, "batch token d_model"]:
        """What overwriting one layer's output adds to the residual stream, after LayerScale."""
        point, block = SITE_OUT[self.site], self.vit.blocks[layer]
        out, value = self.at(point, layer), None if values is None else values[layer]
        altered = overwrite_rows(out, self._rows, value, point.format(l=layer))
        gamma = block.gamma2 if self.site == "mlp" else block.gamma1
        return scaled(altered, gamma) - scaled(out, gamma)

    def _overwritten(
        self, layers: Sequence[int], values: Values | None, reads: Sequence[FwdHook] = ()
    ) -> Tensor:
        overwrite = overwrite_mlp_hooks if self.site == "mlp" else overwrite_attn_hooks
        hooks = [*overwrite(layers, self.ablated, values), *reads]
        idle = layers if self.site == "mlp" and self.ablated == "all" else ()
        return self.from_layer(layers[0], self.at(RESID_PRE, layers[0]), hooks, idle)


@dataclass(frozen=True)
class AlteredPass:
    """A forward with rows of some layers overwritten."""

    embeddings: Float[Tensor, "batch d_embed"]
    """Image embeddings, not normalised, as those of `vit(images)`."""
    x: dict[int, Float[Tensor, "batch scored d_model"]]
    """The altered x_l on the scored rows, for every layer l that the change can reach."""
    y: dict[int, Float[Tensor, "batch scored d_model"]]
    """The altered y_l, alike."""


class OverwrittenPass(SitePass):
    """The clean pass of one batch; overwritten passes go on from it.

    Args:
        vit: the model, with no hooks attached.
        images: one batch of images.
        site: "mlp" or "attn", the part of a block whose output is overwritten.
        ablated: token rows that are overwritten.
        scored: token rows of x_l and y_l that are compared.

    Raises:
        InputError: hooks are attached, an unknown site or token kind, or images of another shape.
    """

    @torch.no_grad()
    def __init__(
        self,
        vit: HookedViT,
        images: Float[Tensor, "batch 3 height width"],
        *,
        site: Site = "mlp",
        ablated: TokenKind = "all",
        scored: TokenKind = "cls",
    ):
        self._scored = token_rows(scored, vit.cfg.rows)
        layers = range(vit.cfg.n_layers)
        keep = dict.fromkeys((RESID_MID, HOOK_OUT), layers)
        super().__init__(vit, images, site=site, ablated=ablated, keep=keep)
        self._mid = [self.at(RESID_MID, l)[:, self._scored] for l in layers]
        self.y = [self.at(HOOK_OUT, l)[:, self._scored] for l in layers]
        """y_l on the scored rows, "batch scored d_model" per layer."""
        self.x = [block.ln2(mid) for block, mid in zip(vit.blocks, self._mid, strict=True)]
        """x_l on the scored rows."""
        # y_l of these rows alone, because torch may choose another kernel for fewer rows
        self._y_scored = [block.mlp(x) for block, x in zip(vit.blocks, self.x, strict=True)]

    def readers(self, source: int) -> range:
        """Layers whose MLP reads the output of layer `source`; for attention it is among them."""
        return range(source + (self.site == "mlp"), self.vit.cfg.n_layers)

    @torch.no_grad()
    def total(self, layers: int | Iterable[int], values: Values | None = None) -> AlteredPass:
        """A forward with these layers' rows overwritten and everything downstream recomputed.

        Only blocks from the first of these layers on run again.

        Args:
            layers: layers that are overwritten.
            values: by layer, the values to write on the ablated rows, with or without a batch axis;
                None writes zeros.

        Raises:
            InputError: a layer out of range, or values of another number of rows.
        """
        layers = layer_list(layers, self.vit.cfg.n_layers)
        x: dict[int, Tensor] = {}
        y: dict[int, Tensor] = {}

        def keep(into: dict[int, Tensor], layer: int, tensor: Tensor, hook: HookPoint) -> None:
            into[layer] = tensor[:, self._scored]

        reads: FwdHooks = []
        for l in self.readers(layers[0]):
            reads += [(READ_IN.format(l=l), partial(keep, x, l))]
            reads += [(HOOK_OUT.format(l=l), partial(keep, y, l))]
        return AlteredPass(self._overwritten(layers, values, reads), x, y)

    @torch.no_grad()
    def direct_on_mlp(
        self, source: int, target: int, values: Values | None = None
    ) -> tuple[Float[Tensor, "batch scored d_model"], Float[Tensor, "batch scored d_model"]]:
        """The changes x_l' - x_l and y_l' - y_l of the scored rows, if only MLP_l sees `values`.

        They are exactly 0 where the overwritten rows keep their values or are not scored, because
        LayerNorm and MLP work row by row.

        Raises:
            InputError: a layer out of range, `target` does not read `source`, or values of another
                number of rows.
        """
        [source], [target] = (layer_list(l, self.vit.cfg.n_layers) for l in (source, target))
        if target not in self.readers(source):
            raise InputError(
                "target",
                f"is {target}, whose MLP does not read the {self.site} output of layer "
                f"{source}; expected a layer from {source + (self.site == 'mlp')} on.",
            )
        block = self.vit.blocks[target]
        x = block.ln2(self._mid[target] + self.stream_change(source, values)[:, self._scored])
        return x - self.x[target], block.mlp(x) - self._y_scored[target]
