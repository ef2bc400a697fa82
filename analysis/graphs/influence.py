"""In-edges of a logit and of features, and the influence of every source through them.

Influence is defined as in circuit-tracer. The in-edges of a target are taken as shares of their
absolute sum, and the influence of a source is the sum, over all paths to the logit, of the product
of the shares along the path:

    I(logit) = 1,    I(s) = sum over targets t of I(t) * |A[t, s]| / sum_s' |A[t, s']|.

Only features deeper than a source have it as input, so one sweep from the logit down sums all
paths. In-edges are computed best first, for the features with the highest influence so far; paths
end at a feature whose in-edges are not computed, as they do at an error. Unlike in circuit-tracer,
the biases count as an input: what is constant drives a target too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.graphs.sources import SourceEffects, Sources
from vit_clt.choices import Norms
from vit_clt.hooks.passes.readout import Reader

_CHUNK = 64  # features whose in-edges are computed before influence is summed again
_NUMBERS = 2**25  # largest number of gradient entries in memory at once


class InEdges:
    """In-edges of the logit and of the features expanded so far.

    Columns are the candidates for nodes: active features, errors (layer by layer), patches, biases.

    Args:
        sources: the sources of one image.
        direction: direction in the embedding space whose logit is the root.
        norms: what is done with norms (`Norms`).
    """

    logit: Float[Tensor, " candidate"]
    """In-edges of the logit, which are the direct effects."""
    expanded: list[int]
    """Active features whose in-edges are computed."""
    edges: Float[Tensor, "target candidate"]
    """The in-edges of `expanded`, in that order."""

    def __init__(self, sources: Sources, direction: Tensor, norms: Norms = "held"):
        self.sources, self.norms = sources, norms
        readout = sources.frozen.read_output(direction, norms=norms)
        self.logit = edges_of(sources.effects(readout))
        self.expanded = []
        self.edges = self.logit.new_zeros(0, len(self.logit))
        self._passed = shares(self.edges)

    def expand(self, n: int) -> None:
        """Compute the in-edges of the n most influential features, best first."""
        n = min(n, len(self.sources.layer))
        while len(self.expanded) < n:
            waiting = self.influence()[: len(self.sources.layer)].clone()
            waiting[self.expanded] = -1
            targets = waiting.topk(min(_CHUNK, n - len(self.expanded))).indices
            targets = targets[waiting[targets] > 0]
            if not len(targets):
                return
            edges = self._in_edges(targets)
            self.edges = torch.cat([self.edges, edges])
            self._passed = torch.cat([self._passed, shares(edges)])
            self.expanded += targets.tolist()

    def influence(self) -> Float[Tensor, " candidate"]:
        """I of every candidate, over the in-edges computed so far."""
        influence = shares(self.logit[None])[0].double()
        layers = self.sources.layer[self.expanded].tolist()
        for i in sorted(range(len(layers)), key=lambda i: -layers[i]):
            influence = influence + influence[self.expanded[i]] * self._passed[i]
        return influence

    def feature_readers(
        self, targets: Int[Tensor, " target"]
    ) -> Iterator[tuple[Int[Tensor, " part"], Reader]]:
        """Where the pre-activations of these active features are read, b_enc left out.

        They come in parts of one layer each that bound memory, with their places in `targets`.
        """
        sources, clt = self.sources, self.sources.clt
        at_once = max(1, _NUMBERS // sources.errors.numel())
        layers = sources.layer[targets]
        for layer in layers.unique().tolist():
            for here in (layers == layer).nonzero()[:, 0].split(at_once):
                encoders = clt.W_enc[layer][sources.feature[targets[here]]].to(sources.errors)
                tokens = sources.token[targets[here]]
                yield here, sources.frozen.mlp_input_reader(layer, tokens, encoders, self.norms)

    def _in_edges(self, targets: Int[Tensor, " target"]) -> Float[Tensor, "target candidate"]:
        sources = self.sources
        out = self.logit.new_zeros(len(targets), len(self.logit))
        for here, reader in self.feature_readers(targets):
            out[here] = edges_of(sources.effects(sources.frozen.readout(reader)))
        out[:, -1] += sources.clt.b_enc[sources.layer[targets], sources.feature[targets]].to(out)
        return out


def edges_of(effects: SourceEffects) -> Float[Tensor, "*direction candidate"]:
    """Effects of all sources on a readout, in the order of the candidates of `InEdges`."""
    parts = (effects.features, effects.errors.flatten(-2), effects.patches, effects.bias[..., None])
    return torch.cat([part.to(effects.errors) for part in parts], dim=-1)


def shares(edges: Float[Tensor, "target candidate"]) -> Float[Tensor, "target candidate"]:
    """The in-edges of every target as shares of their absolute sum, 0 where all are 0."""
    sizes = edges.abs()
    return sizes / sizes.sum(-1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)
