"""Passes with the MLPs of layers s..L-1 altered, for many s, that share one clean pass.

Below layer s nothing is altered: the stream that enters MLP_s, the codes of sources 0..s and their
terms at deeper targets are those of the clean pass. They are computed once for a batch, and a pass
then runs from its first altered MLP output on.

Outputs equal those of whole altered passes within float rounding, as sums associate differently.
Where two features tie for the last place of a top-k code, rounding decides between them, in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.choices import Inputs, TokenKind, check_choice
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.interventions import check_unhooked, overwrite_rows
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, READ_IN, RESID_MID, FwdHook, FwdHooks
from vit_clt.hooks.rows import layer_list, token_rows
from vit_clt.kernels.codes import Codes
from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class ReplacedRange:
    """One forward with the CLT in the place of the MLPs of layers first..L-1."""

    first: int
    embeddings: Float[Tensor, "batch d_embed"]
    """Image embeddings, not normalised, as those of `vit(images)`."""
    l0: float
    """Active features a token row and source layer, over the rows that are replaced and the sources
    that write to layers first..L-1 (those layers themselves for a per-layer transcoder)."""


class SharedPrefix(CleanPass):
    """One clean pass of a batch; passes with layers first..L-1 altered go on from it.

    It keeps x_l, y_l and hook_resid_mid of all layers, "layer batch token d_model" each.

    Args:
        vit: the teacher, with no hooks attached.
        images: one batch of images.

    Raises:
        InputError: hooks are attached, or images of another shape.
    """

    @torch.no_grad()
    def __init__(self, vit: HookedViT, images: Float[Tensor, "batch 3 height width"]):
        check_unhooked(vit)
        points = (RESID_MID, HOOK_IN, HOOK_OUT)
        super().__init__(vit, images, dict.fromkeys(points, range(vit.cfg.n_layers)))

    @torch.no_grad()
    def overwritten(
        self,
        first: int,
        tokens: TokenKind,
        values: Mapping[int, Float[Tensor, "*batch row d_model"]] | None = None,
    ) -> Float[Tensor, "batch d_embed"]:
        """The embeddings with the MLP rows of layers first..L-1 overwritten.

        Args:
            first: the first layer that is altered.
            tokens: token rows that are overwritten.
            values: by layer, the values to write, with or without a batch axis; None for zeros.

        Raises:
            InputError: a layer out of range, or values of another number of rows.
        """
        [first] = layer_list(first, self.vit.cfg.n_layers)
        return self._run(first, tokens, lambda layer: None if values is None else values[layer])

    @torch.no_grad()
    def replaced(
        self,
        clt: CrossLayerTranscoder,
        first_layers: Iterable[int],
        tokens: TokenKind,
        inputs: Inputs = "stream",
    ) -> Iterator[ReplacedRange]:
        """Forwards with MLPs s..L-1 replaced by the CLT, for each s of `first_layers`, ascending.

        A saved CLT should be checked against the model with `check_fits(vit, clt)` first.

        Raises:
            InputError: an argument out of range.
        """
        n = self.vit.cfg.n_layers
        firsts = layer_list(first_layers, n)
        rows = token_rows(tokens, self.vit.cfg.rows)
        check_choice("inputs", inputs, get_args(Inputs))
        x = [self.at(HOOK_IN, l)[:, rows] for l in range(n)]
        if inputs == "stream":
            yield from self._from_stream(clt, x, firsts, tokens)
            return
        sources, replaced = clt.config.sources, range(firsts[0], n)
        codes = {s: clt.encode(x[s], layer=s) for s in sources(*replaced)}
        recon = {
            l: clt.decode({s: codes[s] for s in sources(l)}, target=l, x=x[l]) for l in replaced
        }
        l0 = {s: _l0(codes_s) for s, codes_s in codes.items()}
        for first in firsts:
            mean = fmean(l0[s] for s in sources(*range(first, n)))
            yield ReplacedRange(first, self._run(first, tokens, recon.__getitem__), mean)

    def _from_stream(
        self, clt: CrossLayerTranscoder, x: list[Tensor], firsts: list[int], tokens: TokenKind
    ) -> Iterator[ReplacedRange]:
        # the sum of the terms of sources 0..s at each deeper target
        below: dict[int, Tensor] = {}
        l0: dict[int, float] = {}
        for s in range(firsts[-1] + 1):
            targets = clt.config.targets(s)
            # of a per-layer transcoder only the codes of replaced layers are needed
            if not any(first in targets for first in firsts):
                continue
            # nothing is altered before x_s is read: these codes hold for every first layer >= s
            codes = {s: clt.encode(x[s], layer=s)}
            l0[s] = _l0(codes[s])
            recon = clt.decode(codes, target=s, x=x[s])
            if s in below:
                recon = recon + below.pop(s)
            for target in targets[1:]:
                term = clt.contributions(codes, target)[0]
                below[target] = below[target].add_(term) if target in below else term
            if s in firsts:
                embeddings, live = self._run_live(clt, s, recon, below, tokens)
                sources = clt.config.sources(*range(s, len(x)))
                by_source = [_l0(live[i]) if i in live else l0[i] for i in sources]
                yield ReplacedRange(s, embeddings, fmean(by_source))

    def _run_live(
        self,
        clt: CrossLayerTranscoder,
        first: int,
        recon: Tensor,
        below: Mapping[int, Tensor],
        tokens: TokenKind,
    ) -> tuple[Tensor, dict[int, Codes]]:
        live: dict[int, Codes] = {}
        inputs: dict[int, Tensor] = {}
        rows = token_rows(tokens, self.vit.cfg.rows)

        def read(x: Tensor, hook: HookPoint, layer: int) -> None:
            inputs[layer] = x[:, rows]
            live[layer] = clt.encode(inputs[layer], layer=layer)

        def value(layer: int) -> Tensor:
            if layer == first:
                return recon
            recon_live = clt.decode(live, target=layer, x=inputs.pop(layer))
            return below[layer] + recon_live if layer in below else recon_live

        later = range(first + 1, self.vit.cfg.n_layers)
        reads: FwdHooks = [(READ_IN.format(l=l), partial(read, layer=l)) for l in later]
        return self._run(first, tokens, value, reads), live

    def _run(
        self,
        first: int,
        tokens: TokenKind,
        value: Callable[[int], Tensor | None],
        reads: Sequence[FwdHook] = (),
    ) -> Tensor:
        rows = token_rows(tokens, self.vit.cfg.rows)

        def write(y: Tensor, hook: HookPoint | None, layer: int) -> Tensor:
            return overwrite_rows(y, rows, value(layer), HOOK_OUT.format(l=layer))

        later = range(first + 1, self.vit.cfg.n_layers)
        writes: FwdHooks = [(HOOK_OUT.format(l=l), partial(write, layer=l)) for l in later]
        y = write(self.at(HOOK_OUT, first), None, layer=first)
        idle = later if tokens == "all" else ()
        return self.from_mlp(first, y, [*reads, *writes], idle)


def _l0(codes: Codes) -> float:
    return float(codes.l0().double().mean())
