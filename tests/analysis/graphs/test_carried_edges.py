"""Edges split by head: they sum to the edges, and are what a backward pass of each head gives."""

from __future__ import annotations

import pytest
import torch
from builders import noise
from oracles.frozen_oracle import double_clt, double_vit
from torch import Tensor

from vit_clt.analysis import attribution_graph
from vit_clt.analysis.graphs.carried import edge_parts
from vit_clt.analysis.graphs.influence import InEdges, edges_of
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.choices import Norms
from vit_clt.hooks.passes.carried import head_readers

KINDS = {"cross layer": False, "per layer": True}


@pytest.mark.parametrize("norms", ["held", "differentiated"])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_those_of_backward_passes_and_sum_to_edges(
    kind: str, norms: Norms, images: Tensor
) -> None:
    vit = double_vit(ls_init_value=0.7)
    sources = Sources(vit, double_clt(vit, per_layer=KINDS[kind]), images[0].double())
    direction = noise(12)
    in_edges = InEdges(sources, direction, norms)
    in_edges.expand(40)
    n_active, n = len(sources.layer), len(in_edges.logit)
    targets = sorted(in_edges.expanded[::5])
    # some features of every layer, errors, patches, and the biases at the end
    others = [*range(n_active, n - 1, 7), n - 1]
    candidates = torch.tensor([*targets, *others])
    parts = edge_parts(in_edges, direction, candidates)
    assert parts.heads.shape == (1 + len(targets), 4, 2, len(candidates))
    whole = [in_edges.logit] + [in_edges.edges[in_edges.expanded.index(c)] for c in targets]
    torch.testing.assert_close(
        parts.residual + parts.heads.sum((1, 2)),
        torch.stack(whole)[:, candidates],
        rtol=1e-9,
        atol=1e-12,
    )
    frozen = sources.frozen
    readers = [frozen.output_reader(direction[None], norms)]
    for c in targets:
        layer, token, feature = int(sources.layer[c]), sources.token[c], sources.feature[c]
        encoder = sources.clt.W_enc[layer][feature]
        readers.append(frozen.mlp_input_reader(layer, token[None], encoder[None], norms))
    for t, reader in enumerate(readers):
        for l in range(4):
            if l >= reader.n_attentions:
                assert not parts.heads[t, l].any()
                continue
            carried = sources.effects(frozen.readout(head_readers(frozen, reader, l)))
            wanted = edges_of(carried)[:, 0, candidates]
            torch.testing.assert_close(parts.heads[t, l], wanted, rtol=1e-9, atol=1e-12)


def test_a_graph_names_the_largest_heads_of_every_edge(images: Tensor) -> None:
    vit = double_vit()
    sources = Sources(vit, double_clt(vit), images[0].double())
    direction = noise(12)
    graph = attribution_graph(sources, direction, max_nodes=30, keep=1)
    sums = graph.carried.groupby(["source", "target"])["effect"].sum()
    edges = graph.edges.set_index(["source", "target"])["effect"].sort_index()
    assert sums.index.tolist() == edges.index.tolist()
    assert sums.to_numpy() == pytest.approx(edges.to_numpy(), rel=1e-9, abs=1e-12)
    heads = graph.carried[graph.carried["by"] == "head"]
    assert heads.groupby(["source", "target"]).size().max() == 3
    # sources on another row than their target reach it by heads alone
    nodes = graph.nodes.set_index("node")
    for r in graph.carried[graph.carried["by"] == "residual"].itertuples():
        rows = [nodes.loc[end, "token"] for end in (r.source, r.target)]
        if nodes.loc[r.source, "kind"] != "bias":
            assert rows[0] == (0 if r.target == 0 else rows[1])
    # a head carries to a feature from below that feature's MLP
    into = nodes.loc[heads["target"], "layer"].fillna(4).to_numpy()
    assert (heads["layer"].to_numpy() <= into).all()
    top = graph.top_heads()
    for ends, group in heads.groupby(["source", "target"]):
        largest = group.loc[group["effect"].abs().idxmax()]
        assert top[ends] == (largest["layer"], largest["head"], largest["effect"])
