"""The kept edges of a graph, split by the attention head that carries them.

An edge is exactly the part that reaches its target through the residual stream alone plus, for
every head (l, h), the part whose last attention step before the target is that head
(`vit_clt.hooks.passes.carried`). Sources are pushed forward once and read by all targets, so that
the split costs a few forwards a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.graphs.graph_result import CARRIED
from vit_clt.analysis.graphs.influence import InEdges, edges_of
from vit_clt.hooks.passes.carried import head_changes
from vit_clt.hooks.passes.readout import Reader

TOP_HEADS = 3
"""Heads of an edge that are named; the others are added up."""


@dataclass(frozen=True)
class EdgeParts:
    """The parts of the edges from some candidates to some targets; they sum to the edges."""

    residual: Float[Tensor, "target source"]
    """Through the residual stream alone."""
    heads: Float[Tensor, "target layer head source"]
    """Carried by each head; 0 for heads that the target does not read."""


@torch.no_grad()
def edge_parts(
    in_edges: InEdges, direction: Float[Tensor, " d_embed"], candidates: Int[Tensor, " source"]
) -> EdgeParts:
    """The edges to the logit, and to those of the candidates that are features, in this order.

    Args:
        in_edges: the graph, whose norms are taken.
        direction: the direction whose logit is the root.
        candidates: numbers of candidates, in the order of `InEdges`; the last one stands for the
            biases.
    """
    sources = in_edges.sources
    frozen, n_active = sources.frozen, len(sources.layer)
    targets = candidates[candidates < n_active]
    cfg = frozen.vit.cfg
    residual = sources.errors.new_zeros(1 + len(targets), len(candidates))
    heads = residual.new_zeros(1 + len(targets), cfg.n_layers, cfg.n_heads, len(candidates))
    output = frozen.output_reader(direction[None], in_edges.norms)
    readers: list[tuple[Tensor, Reader]] = [(torch.tensor([0]).to(targets), output)]
    readers += [(1 + here, reader) for here, reader in in_edges.feature_readers(targets)]
    for at, reader in readers:
        alone = frozen.readout(reader, attention=False)
        residual[at] = edges_of(sources.effects(alone))[..., candidates]
    # one layer's values at a time: they are as large as all sources' streams
    changes = head_changes(frozen, *_writes(in_edges, candidates), in_edges.norms)
    for l, z in enumerate(changes):
        for at, reader in readers:
            if l < reader.n_attentions:
                at_heads = frozen.attention[l].at_heads(reader.stream)
                heads[at, l] = torch.einsum("tbhqd,sbhqd->ths", at_heads, z)
    b_enc = sources.clt.b_enc[sources.layer[targets], sources.feature[targets]]
    residual[1:, -1] += b_enc.to(residual)
    return EdgeParts(residual, heads)


def carried_frame(
    parts: EdgeParts, numbers: list[int], targets: list[int], edges: pd.DataFrame
) -> pd.DataFrame:
    """The parts of every edge as a table, the largest heads by name; see `AttributionGraph`.

    Args:
        parts: the parts.
        numbers: the node number of every source of `parts`.
        targets: that of every target.
        edges: the edges that are kept, with source and target.
    """
    source_at, target_at = ({n: i for i, n in enumerate(each)} for each in (numbers, targets))
    s = torch.tensor([source_at[n] for n in edges["source"]], dtype=torch.long)
    t = torch.tensor([target_at[n] for n in edges["target"]], dtype=torch.long)
    n_heads = parts.heads.shape[2]
    heads = parts.heads.cpu().permute(0, 3, 1, 2)[t, s].flatten(1)
    largest = heads.abs().topk(min(TOP_HEADS, heads.shape[1])).indices
    named = heads.gather(1, largest)
    others = heads.sum(1, keepdim=True) - named.sum(1, keepdim=True)
    effects = torch.cat([parts.residual.cpu()[t, s, None], named, others], dim=1)
    n_parts = effects.shape[1]
    by = np.array(["residual", *["head"] * (n_parts - 2), "other heads"], dtype=object)
    frame = pd.DataFrame(
        {
            "source": np.repeat(edges["source"].to_numpy(), n_parts),
            "target": np.repeat(edges["target"].to_numpy(), n_parts),
            "by": np.tile(by, len(edges)),
            "layer": F.pad(largest // n_heads, (1, 1)).flatten().numpy(),
            "head": F.pad(largest % n_heads, (1, 1)).flatten().numpy(),
            "effect": effects.double().flatten().numpy(),
        },
        columns=list(CARRIED),
    ).astype({"layer": "Int64", "head": "Int64"})
    frame.loc[frame["by"] != "head", ["layer", "head"]] = pd.NA
    return frame[frame["effect"] != 0].reset_index(drop=True)


def _writes(
    in_edges: InEdges, candidates: Tensor
) -> tuple[Tensor, Callable[[int], Tensor], Tensor]:
    """What every candidate puts into ln_pre and into each y_l, and whether it is the biases."""
    sources = in_edges.sources
    frozen, clt, errors = sources.frozen, sources.clt, sources.errors
    n_active, n_tokens = len(sources.layer), errors.shape[1]
    shape = (len(candidates), *errors.shape[1:])
    inputs, constant = errors.new_zeros(shape), errors.new_zeros(len(candidates))
    patches = n_active + errors.shape[0] * n_tokens
    for i, c in enumerate(candidates.tolist()):
        if patches <= c < patches + n_tokens - 1:
            inputs[i, 1 + c - patches] = frozen.patches[0, c - patches]
    inputs[-1] = frozen.positions
    inputs[-1, 0] += frozen.class_token
    constant[-1] = 1

    def y(layer: int) -> Tensor:
        out = errors.new_zeros(shape)
        for i, c in enumerate(candidates.tolist()):
            if c < n_active:
                s, token, feature = (
                    int(each[c]) for each in (sources.layer, sources.token, sources.feature)
                )
                if layer in clt.config.targets(s):
                    row = clt.decoder(s, layer)[feature]
                    out[i, token] = (sources.activation[c] * row).to(out)
            elif c < patches and (c - n_active) // n_tokens == layer:
                token = (c - n_active) % n_tokens
                out[i, token] = errors[layer, token]
        out[-1] = clt.b_dec[layer].to(out)
        return out[:, None]

    return inputs[:, None], y, constant
