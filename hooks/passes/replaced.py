"""Ranges s..L-1 of altered MLPs on one batch, for many s, at the cost of one unaltered prefix.

Below layer s nothing is altered: the stream that enters MLP_s, the codes of sources 0..s and their
terms at deeper targets are those of the unaltered model. They are computed once a batch; a range
then runs from its first MLP output on. Outputs equal those of whole altered passes within float
rounding: sums associate differently. Where two features tie for the last place of a top-k code,
rounding decides, in either.
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
    """One forward with the CLT in place of layers first..L-1."""

    first: int
    embeddings: Float[Tensor, "batch d_embed"]
    """Not normalised, as `vit(images)`."""
    l0: float
    """Active features a token and source layer, over the rows replaced and the sources that write
    to layers first..L-1: all L of a CLT, those layers themselves of a per-layer transcoder."""


class SharedPrefix(CleanPass):
    """One unaltered pass of a batch, and altered ranges that go on from it.

    Keeps x_l, y_l and the stream between attention and MLP, "layer batch token d_model" each.

    Args:
        vit: the teacher, with no hooks attached.
        images: one batch.

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
            first: the first layer altered.
            tokens: rows overwritten.
            values: per layer, what to write there, with or without a batch axis; None for zeros.

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
        """Layers s..L-1 replaced by the CLT, for each s of `first_layers`, ascending.

        Check a saved CLT against the model with `check_fits(vit, clt)` first.

        Raises:
            InputError: an argument out of range.
        """
        n = self.vit.cfg.n_layers
        firsts = layer_list(first_layers, n)
        rows = token_rows(tokens, self.vit.cfg.has_cls)
        check_choice("inputs", inputs, get_args(Inputs))
        x = [self.at(HOOK_IN, l)[:, rows] for l in range(n)]
        if inputs == "stream":
            yield from self._from_stream(clt, x, firsts, tokens)
            return
        sources, replaced = clt.config.sources, range(firsts[0], n)
        codes = {s: clt.encode(x[s], layer=s) for s in sources(*replaced)}
        recon = {l: clt.decode({s: codes[s] for s in sources(l)}, target=l) for l in replaced}
        l0 = {s: _l0(each) for s, each in codes.items()}
        for first in firsts:
            mean = fmean(l0[s] for s in sources(*range(first, n)))
            yield ReplacedRange(first, self._run(first, tokens, recon.__getitem__), mean)

    def _from_stream(
        self, clt: CrossLayerTranscoder, x: list[Tensor], firsts: list[int], tokens: TokenKind
    ) -> Iterator[ReplacedRange]:
        # what sources up to the running one add to each deeper target
        below: dict[int, Tensor] = {}
        l0: dict[int, float] = {}
        for s in range(firsts[-1] + 1):
            targets = clt.config.targets(s)
            # a per-layer transcoder's codes of a layer that stays serve no range
            if not any(first in targets for first in firsts):
                continue
            # nothing is altered before MLP_s has been read: these codes serve every range from s on
            codes = {s: clt.encode(x[s], layer=s)}
            l0[s] = _l0(codes[s])
            recon = clt.decode(codes, target=s)
            if s in below:
                recon = recon + below.pop(s)
            for target in targets[1:]:
                term = clt.contributions(codes, target)[0]
                below[target] = below[target].add_(term) if target in below else term
            if s in firsts:
                embeddings, live = self._run_live(clt, s, recon, below, tokens)
                read = clt.config.sources(*range(s, len(x)))
                shares = [_l0(live[source]) if source in live else l0[source] for source in read]
                yield ReplacedRange(s, embeddings, fmean(shares))

    def _run_live(
        self,
        clt: CrossLayerTranscoder,
        first: int,
        recon: Tensor,
        below: Mapping[int, Tensor],
        tokens: TokenKind,
    ) -> tuple[Tensor, dict[int, Codes]]:
        live: dict[int, Codes] = {}
        rows = token_rows(tokens, self.vit.cfg.has_cls)

        def read(x: Tensor, hook: HookPoint, layer: int) -> None:
            live[layer] = clt.encode(x[:, rows], layer=layer)

        def value(layer: int) -> Tensor:
            if layer == first:
                return recon
            own = clt.decode(live, target=layer)
            return below[layer] + own if layer in below else own

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
        rows = token_rows(tokens, self.vit.cfg.has_cls)

        def write(y: Tensor, hook: HookPoint | None, layer: int) -> Tensor:
            return overwrite_rows(y, rows, value(layer), HOOK_OUT.format(l=layer))

        later = range(first + 1, self.vit.cfg.n_layers)
        writes: FwdHooks = [(HOOK_OUT.format(l=l), partial(write, layer=l)) for l in later]
        y = write(self.at(HOOK_OUT, first), None, layer=first)
        idle = later if tokens == "all" else ()
        return self.from_mlp(first, y, [*reads, *writes], idle)


def _l0(codes: Codes) -> float:
    return float(codes.l0().double().mean())
