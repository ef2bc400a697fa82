"""Replacement score and completeness score of a graph, as circuit-tracer defines them.

Nodes are the features whose in-edges were computed, the error nodes and the inputs (here patches).
Biases are no nodes. The in-edges of a target are taken as shares of their absolute sum, w is 1 for
the logit, and I(n) is the influence of n over all paths to it:

    replacement score     sum over patches of I / sum over patches and errors of I
    completeness score    sum over nodes of (1 - e(n)) (I(n) + w(n)) / sum of (I(n) + w(n))

e(n) is the share of errors among the in-edges of n, 0 where n has none. Both are 1 where nothing
runs through an error node. They say how much of the linear account the features carry; whether
that account foretells anything is for interventions to say (`graph_agreement`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from vit_clt.analysis.graphs.influence import InEdges, shares


class GraphScores(NamedTuple):
    """Both scores of one graph.

    Where no influence reaches an input or an error node, replacement is NaN and completeness 1: no
    in-edge of what has influence is from an error.
    """

    replacement: float
    completeness: float


def graph_scores(in_edges: InEdges) -> GraphScores:
    """The scores of the graph of all features whose in-edges were computed, before any pruning."""
    sources = in_edges.sources
    n_active, n_errors = len(sources.layer), sources.errors.shape[0] * sources.errors.shape[1]
    n_candidates = len(in_edges.logit) - 1  # the last is that of the biases
    expanded = torch.tensor(in_edges.expanded, dtype=torch.long, device=in_edges.logit.device)
    columns = torch.cat([expanded, torch.arange(n_active, n_candidates).to(expanded)])
    n_features = len(expanded)
    errors = slice(n_features, n_features + n_errors)
    of_logit = shares(in_edges.logit[None, columns].double())[0]
    of_features = shares(in_edges.edges[:, columns].double())
    influence = of_logit.clone()
    # a feature has deeper ones alone as targets
    layers = sources.layer[expanded].tolist()
    for i in sorted(range(n_features), key=lambda i: -layers[i]):
        influence += influence[i] * of_features[i]
    from_errors = float(influence[errors].sum())
    from_inputs = float(influence[errors.stop :].sum())
    explained = torch.ones_like(influence)
    explained[:n_features] -= of_features[:, errors].sum(1)
    weighted = float((explained * influence).sum() + 1 - of_logit[errors].sum())
    total = from_inputs + from_errors
    return GraphScores(
        from_inputs / total if total else float("nan"), weighted / (float(influence.sum()) + 1)
    )
