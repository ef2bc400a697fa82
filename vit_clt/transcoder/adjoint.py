"""The adjoint of decoding: what each entry of a source's codes adds to a reading of MLP outputs."""

from __future__ import annotations

from functools import cached_property
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.kernels.bags import (
    FeatureOrder,
    entry_dots,
    entry_dots_by_token,
    feature_order,
)
from vit_clt.kernels.codes import Codes


class DecodeAdjoint:
    """The adjoint of `CrossLayerTranscoder.decode` for the codes of one source layer s.

    A reading of the MLP outputs has the gradients G_l "*token d_model" with respect to y_l. A unit
    of entry e of the codes (token t_e, feature i_e, value z_e) adds to it, by the decoder alone,

        u_e = sum over targets l of s of <W_dec[s->l]_{i_e}, G_l[t_e]>

    and z_e u_e is what the entry adds, its direct effect: exact where the reading is linear in the
    y_l, to first order of a small change of z_e elsewhere. Both come in the order of
    `codes.entries()`; `codes.active()` leaves out entries that add nothing. Not differentiable.

    Made by `CrossLayerTranscoder.decode_adjoint`; kept, it serves many readings of the same codes.

    Args:
        codes: of one layer, "*token feature".
        decoder: W_dec[s].
        targets: the layers that the decoder's first axis runs over.
    """

    def __init__(
        self, codes: Codes, decoder: Float[Tensor, "target feature d_model"], targets: range
    ):
        self._tokens, self._decoder, self._targets = codes.tokens, decoder, targets
        self._entries = codes.entries()

    @torch.no_grad()
    def units(
        self, gradients: Float[Tensor, "*direction_layer_token d_model"], first: int = 0
    ) -> Float[Tensor, "*direction entry"]:
        """u_e of every entry, in the decoder's dtype.

        Args:
            gradients: G_l of one or more consecutive layers, "layer *token d_model", or of several
                readings at once, "*direction layer *token d_model"; of other layers they are 0.
            first: the first of these layers.

        Raises:
            InputError: token axes or a width that are not those of the codes and the decoder.
        """
        width = self._decoder.shape[-1]
        expected = (*self._tokens, width)
        axes = gradients.ndim - len(expected) - 1
        if axes < 0 or gradients.shape[-len(expected) :] != expected:
            raise InputError(
                "gradients",
                f"have shape {tuple(gradients.shape)}; expected a layer axis and the axes "
                f"{expected} after it.",
            )
        directions, last = gradients.shape[:axes], first + gradients.shape[axes]
        seen = range(max(first, self._targets.start), min(last, self._targets.stop))
        entries, start = self._entries, self._targets.start
        if not seen:
            return self._decoder.new_zeros(*directions, len(entries.values))
        tables = self._decoder[seen.start - start : seen.stop - start]
        folded = gradients.to(tables.dtype).flatten(axes + 1, -2)
        at_targets = folded[..., seen.start - first : seen.stop - first, :, :]
        if prod(directions) == 1:
            dots = entry_dots(at_targets.view(tables.shape[0], -1, width), tables, self._order)
            return self._order.unsort(dots).view(*directions, -1)
        return entry_dots_by_token(at_targets, tables, entries.indices, entries.offsets)

    def effects(
        self, gradients: Float[Tensor, "*direction_layer_token d_model"], first: int = 0
    ) -> Float[Tensor, "*direction entry"]:
        """z_e u_e of every entry: its direct effect on the readings. Arguments as for `units`."""
        return self.units(gradients, first) * self._entries.values

    @cached_property
    def _order(self) -> FeatureOrder:
        n_features = self._decoder.shape[1]
        return feature_order(self._entries.indices, self._entries.offsets, n_features)
