"""In-edges of a logit and of features, and how much every source counts by way of them.

Influence, after circuit-tracer: every target's in-edges as shares of their absolute sum, and a
source's influence the sum over all paths to the logit of the products of shares on the way,

    I(logit) = 1,    I(s) = sum over targets t of I(t) * |A[t, s]| / sum_s' |A[t, s']|.

Only features deeper than a source have it as input, so one sweep from the logit down sums all
paths. In-edges are worked out best first, for the features with the highest influence so far; a
feature whose in-edges are not worked out is an end, like an error. Unlike circuit-tracer's, biases
count as an input: what is constant drives a target too.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.graphs.sources import SourceEffects, Sources
from vit_clt.choices import Norms

_CHUNK = 64  # features worked out before influence is summed anew
_NUMBERS = 2**25  # of gradients held at once


class InEdges:
    """In-edges of the logit and of the features worked out so far.

    Columns are the candidates for nodes: active features, errors (layer by layer), patches, biases.
    """

    logit: Float[Tensor, " candidate"]
    """In-edges of the logit: direct effects."""
    expanded: list[int]
    """Active features whose in-edges are worked out, and these, row by row:"""
    edges: Float[Tensor, "target candidate"]

    def __init__(self, sources: Sources, direction: Tensor, norms: Norms = "held"):
        self.sources, self.norms = sources, norms
        readout = sources.frozen.read_output(direction, norms=norms)
        self.logit = edges_of(sources.effects(readout))
        self.expanded = []
        self.edges = self.logit.new_zeros(0, len(self.logit))
        self._passed = shares(self.edges)

    def expand(self, n: int) -> None:
        """Work out the in-edges of the n most influential features, best first."""
        n = min(n, len(self.sources.layer))
        while len(self.expanded) < n:
            waiting = self.influence()[: len(self.sources.layer)].clone()
            waiting[self.expanded] = -1
            chosen = waiting.topk(min(_CHUNK, n - len(self.expanded))).indices
            chosen = chosen[waiting[chosen] > 0]
            if not len(chosen):
                return
            found = self._in_edges(chosen)
            self.edges = torch.cat([self.edges, found])
            self._passed = torch.cat([self._passed, shares(found)])
            self.expanded += chosen.tolist()

    def influence(self) -> Float[Tensor, " candidate"]:
        """I of every candidate, on the rows worked out."""
        found = shares(self.logit[None])[0].double()
        layers = self.sources.layer[self.expanded].tolist()
        for i in sorted(range(len(layers)), key=lambda i: -layers[i]):
            found = found + found[self.expanded[i]] * self._passed[i]
        return found

    def _in_edges(self, chosen: Int[Tensor, " target"]) -> Float[Tensor, "target candidate"]:
        sources, clt = self.sources, self.sources.clt
        out = self.logit.new_zeros(len(chosen), len(self.logit))
        at_once = max(1, _NUMBERS // sources.errors.numel())
        layers = sources.layer[chosen]
        batches = [
            (layer, here)
            for layer in layers.unique().tolist()
            for here in (layers == layer).nonzero()[:, 0].split(at_once)
        ]
        for layer, here in batches:
            features = sources.feature[chosen[here]]
            readout = sources.frozen.read_mlp_input(
                layer,
                sources.token[chosen[here]],
                clt.W_enc[layer][features].to(sources.errors),
                self.norms,
            )
            out[here] = edges_of(sources.effects(readout))
            out[here, -1] += clt.b_enc[layer, features].to(out)
        return out


def edges_of(effects: SourceEffects) -> Float[Tensor, "*direction candidate"]:
    """Effects of all sources on a reading, in the order of candidates."""
    parts = (effects.features, effects.errors.flatten(-2), effects.patches, effects.bias[..., None])
    return torch.cat([part.to(effects.errors) for part in parts], dim=-1)


def shares(edges: Float[Tensor, "target candidate"]) -> Float[Tensor, "target candidate"]:
    """Every target's in-edges as shares of their absolute sum."""
    sizes = edges.abs()
    return sizes / sizes.sum(-1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)
