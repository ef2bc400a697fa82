"""The attribution graph of one image shows what drives a logit, feature by feature.

Nodes are the logit, active features, error nodes (one per layer and row), patch embeddings, and
one node for all biases. An edge is the direct effect of its source on its target: on the logit, or
on the pre-activation of a target feature, W_enc x_l[row] + b_enc, with attention patterns, norms
and the set of active features held (a top-k feature stays on whatever drives it). All in-edges of a
target, those of dropped nodes included, sum to its value exactly. With norms differentiated they do
not, but they say better what a change of the source would do.

Nodes are kept by their influence (`vit_clt.analysis.graphs.influence`); in-edges are computed for
eight times as many features as a graph may have nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.graphs.carried import carried_frame, edge_parts
from vit_clt.analysis.graphs.graph_result import AttributionGraph, GraphMetadata
from vit_clt.analysis.graphs.influence import InEdges, edges_of, shares
from vit_clt.analysis.graphs.scores import graph_scores
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.choices import Norms
from vit_clt.errors import InputError

MAX_NODES = 60
KEEP = 0.8
"""Share of the influence of all nodes that the nodes kept should have."""
EXPAND = 8
"""In-edges are computed for this many features per node that a graph may have."""


@torch.no_grad()
def attribution_graph(
    sources: Sources,
    direction: Float[Tensor, " d_embed"],
    *,
    max_nodes: int = MAX_NODES,
    keep: float | int = KEEP,
    norms: Norms = "held",
    image: str = "image",
    target: str = "direction",
    clt_name: str = "in memory",
) -> AttributionGraph:
    """The graph of <e/||e||, direction> for one image.

    Nodes are kept in the order of their influence until they have the share `keep` of all nodes'
    influence or are `max_nodes`; the logit and the biases are kept beside them.

    Args:
        sources: the sources of the image.
        direction: direction in the embedding space; `class_direction` gives that of a class.
        max_nodes: largest number of features, errors and patches kept.
        keep: share of influence to keep.
        norms: held, so that in-edges sum to their target, or differentiated, so that they are the
            first order of what a small change does (`vit_clt.hooks.passes.frozen`).
        image: what the image is called in captions.
        target: what the logit is called in captions.
        clt_name: what the CLT is called in captions.

    Raises:
        InputError: max_nodes below 1, or a share outside 0 to 1.
    """
    check_size(max_nodes, keep)
    in_edges = InEdges(sources, direction, norms)
    in_edges.expand(EXPAND * max_nodes)
    influence = in_edges.influence()
    n_active = len(sources.layer)
    eligible = influence[:-1].clone()
    # a feature without in-edges would look as if nothing drove it
    eligible[:n_active] = 0
    eligible[in_edges.expanded] = influence[in_edges.expanded]
    ranked = eligible.argsort(descending=True, stable=True)
    ranked = ranked[eligible[ranked] > 0][:max_nodes]
    reached = eligible[ranked].cumsum(0) + influence[-1]
    enough = int((reached < keep * influence.sum()).sum()) + 1
    kept = torch.cat([ranked[:enough].sort().values, ranked.new_tensor([len(eligible)])])
    return _assemble(in_edges, direction, influence, kept, (image, target, clt_name))


def check_size(max_nodes: int, keep: float | int) -> None:
    """Refuse a size that leaves no graph.

    Raises:
        InputError: max_nodes below 1, or a share outside 0 to 1.
    """
    if max_nodes < 1:
        raise InputError("max_nodes", f"is {max_nodes}; expected at least 1.")
    if not 0 < keep <= 1:
        raise InputError("keep", f"is {keep}; expected a share above 0 and up to 1.")


def _assemble(
    in_edges: InEdges,
    direction: Tensor,
    influence: Tensor,
    kept: Tensor,
    names: tuple[str, str, str],
) -> AttributionGraph:
    sources = in_edges.sources
    vit, n_active = sources.frozen.vit, len(sources.layer)
    total = edges_of(sources.effects(sources.total_readout(direction, in_edges.norms)))
    describe = _candidates(sources)
    nodes = pd.DataFrame(
        [{"kind": "logit", "layer": None, "token": None, "feature": None}]
        + [describe(int(c)) for c in kept]
    ).astype(dict.fromkeys(["layer", "token", "feature"], "Int64"))
    nodes.insert(0, "node", range(len(nodes)))
    logit = float(sources.logit(direction))
    values = _values(sources)[kept].tolist()
    nodes["value"] = [logit, *values]
    nodes["effect"] = [None, *in_edges.logit[kept].tolist()]
    # the biases have no single total effect, because features have biases of their own
    nodes["total"] = [None, *total[kept[:-1]].tolist(), None]
    nodes["influence"] = [1.0, *influence[kept].tolist()]
    number = {int(c): i for i, c in enumerate(kept.tolist(), start=1)}
    position = {candidate: i for i, candidate in enumerate(in_edges.expanded)}
    targets = [(0, in_edges.logit, 1.0)] + [
        (number[c], in_edges.edges[position[c]], float(influence[c]))
        for c in kept.tolist()
        if c < n_active
    ]
    edges = pd.DataFrame(
        [
            {"source": number[c], "target": target, "effect": effect, "influence": weight * share}
            for target, row, weight in targets
            for c, effect, share in zip(
                kept.tolist(), row[kept].tolist(), shares(row[None])[0, kept].tolist(), strict=True
            )
            if effect != 0
        ],
        columns=["source", "target", "effect", "influence"],
    )
    inside = torch.stack([shares(row[None])[0, kept].sum() for _, row, _ in targets])
    weights = inside.new_tensor([weight for *_, weight in targets])
    ends = influence.clone()
    ends[in_edges.expanded] = 0
    errors = slice(n_active, n_active + sources.errors.shape[0] * sources.errors.shape[1])
    scores = graph_scores(in_edges)
    metadata = GraphMetadata(
        image=names[0],
        target=names[1],
        model=vit.cfg.model,
        clt=names[2],
        logit=logit,
        norms=in_edges.norms,
        l0=n_active / (vit.cfg.n_layers * vit.cfg.n_tokens),
        n_layers=vit.cfg.n_layers,
        n_tokens=vit.cfg.n_tokens,
        patch_grid=vit.cfg.patch_grid,
        n_active=n_active,
        n_expanded=len(in_edges.expanded),
        n_candidates=len(influence),
        replacement_score=scores.replacement,
        completeness_score=scores.completeness,
        kept_influence=float(influence[kept].sum() / influence.sum()),
        kept_effect=float(inside[0]),
        completeness=float((inside * weights).sum() / weights.sum()),
        error_share=float(ends[errors].sum() / ends.sum()),
        unexpanded_share=float(ends[:n_active].sum() / ends.sum()),
    )
    carried = carried_frame(
        edge_parts(in_edges, direction, kept),
        list(number.values()),
        [target for target, *_ in targets],
        edges,
    )
    return AttributionGraph(metadata, nodes, edges, carried)


def _candidates(sources: Sources) -> Callable[[int], dict[str, Any]]:
    """The function that describes a candidate by its number, in the order of `InEdges`."""
    n_active, n_tokens = len(sources.layer), sources.errors.shape[1]
    n_errors = len(sources.errors) * n_tokens

    def describe(c: int) -> dict[str, Any]:
        if c < n_active:
            place = (sources.layer[c], sources.token[c], sources.feature[c])
            layer, token, feature = map(int, place)
            return {"kind": "feature", "layer": layer, "token": token, "feature": feature}
        rest = c - n_active
        if rest < n_errors:
            layer, token = divmod(rest, n_tokens)
            return {"kind": "error", "layer": layer, "token": token, "feature": None}
        patch = rest - n_errors
        if patch < n_tokens - 1:
            return {"kind": "patch", "layer": None, "token": 1 + patch, "feature": None}
        return {"kind": "bias", "layer": None, "token": None, "feature": None}

    return describe


def _values(sources: Sources) -> Float[Tensor, " candidate"]:
    """Activations, norms of errors and of patches, and NaN for the biases."""
    errors = sources.errors.norm(dim=-1).flatten()
    patches = sources.frozen.patches[0].norm(dim=-1)
    nothing = errors.new_full((1,), torch.nan)
    return torch.cat([sources.activation.to(errors), errors, patches, nothing])
