"""Attribution graphs: edges that sum up, influence by matrix inversion, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from assertions import tells_itself
from builders import random_clt
from oracles.frozen_oracle import double_clt, double_vit
from torch import Tensor

from vit_clt import AbsTopK, InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import attribution_graph
from vit_clt.analysis.graphs.files import graphs_json, load_graphs
from vit_clt.analysis.graphs.graph_figure import graph_figure
from vit_clt.analysis.graphs.graph_result import AttributionGraph
from vit_clt.analysis.graphs.influence import InEdges
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.hooks import HookedViT

KINDS: dict[str, Any] = {
    "relu_topk": {"sparsifier": ReLUTopK(k=3)},
    "abs_topk": {"sparsifier": AbsTopK(k=3)},
    "jumprelu": {"sparsifier": JumpReLU(0.6)},
    "per layer": {"per_layer": True},
}


def double_sources(image: Tensor, **kind: Any) -> Sources:
    vit = double_vit()
    return Sources(vit, double_clt(vit, **kind), image.double())


@pytest.fixture
def direction() -> Tensor:
    return torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def sources(images: Tensor) -> Sources:
    return double_sources(images[0])


@pytest.mark.parametrize("kind", KINDS)
def test_in_edges_sum_to_their_targets(kind: str, images: Tensor, direction: Tensor) -> None:
    sources = double_sources(images[0], **KINDS[kind])
    rows = InEdges(sources, direction)
    rows.expand(40)
    assert len(set(rows.expanded)) == 40
    assert float(rows.logit.sum()) == pytest.approx(float(sources.logit(direction)), rel=1e-10)
    wanted = sources.activation[rows.expanded]
    torch.testing.assert_close(rows.edges.sum(1), wanted, rtol=1e-9, atol=1e-11)
    # no feature is driven by features of its own layer or above
    deep = sources.layer[None] >= sources.layer[rows.expanded][:, None]
    assert not rows.edges[:, : len(sources.layer)][deep].any()
    if kind == "per layer":
        return
    # an error node drives x_l alone: checked on one edge by a change of y
    at = rows.expanded[int(sources.layer[rows.expanded].argmax())]
    layer, token = int(sources.layer[at]), int(sources.token[at])
    encoder = sources.clt.W_enc[layer][sources.feature[at]]
    readout = sources.frozen.read_mlp_input(layer, torch.tensor([token]), encoder[None])
    edge = rows.edges[rows.expanded.index(at), len(sources.layer) + token]
    assert float(edge) == pytest.approx(
        float(readout.y[0, 0, 0, token] @ sources.errors[0, token]), rel=1e-9
    )


def dense(sources: Sources, direction: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A[target, source] over active features and ends, and the logit's row."""
    rows = InEdges(sources, direction)
    rows.expand(len(sources.layer))
    n = len(rows.logit)
    matrix = np.zeros((n, n))
    matrix[rows.expanded] = rows.edges.numpy()
    return matrix, rows.logit.numpy()


def test_influence_is_the_sum_over_all_paths(sources: Sources, direction: Tensor) -> None:
    rows = InEdges(sources, direction)
    rows.expand(len(sources.layer))
    matrix, logit = dense(sources, direction)
    sums = np.abs(matrix).sum(1, keepdims=True)
    shares = np.divide(np.abs(matrix), sums, out=np.zeros_like(matrix), where=sums > 0)
    first = np.abs(logit) / np.abs(logit).sum()
    wanted = np.linalg.solve(np.eye(len(first)) - shares.T, first)
    np.testing.assert_allclose(rows.influence().numpy(), wanted, rtol=1e-8, atol=1e-14)
    # all influence ends somewhere
    ends = wanted[len(sources.layer) :].sum()
    assert ends == pytest.approx(1, rel=1e-9)


def test_total_effects_are_sums_over_paths(sources: Sources, direction: Tensor) -> None:
    matrix, logit = dense(sources, direction)
    n = len(sources.layer)
    activation = sources.activation.numpy()
    # a unit of feature j is worth total_j / z_j
    passed = matrix[:n] / activation[:, None]
    wanted = np.linalg.solve(np.eye(n) - passed[:, :n].T, logit[:n])
    found = sources.effects(sources.total_readout(direction))
    np.testing.assert_allclose(found.features.numpy(), wanted, rtol=1e-8, atol=1e-11)
    errors = logit[n : n + 40] + passed[:, n : n + 40].T @ wanted
    np.testing.assert_allclose(found.errors.flatten().numpy(), errors, rtol=1e-8, atol=1e-11)


def test_differentiated_norms_reach_every_edge(sources: Sources, direction: Tensor) -> None:
    rows = InEdges(sources, direction, "differentiated")
    rows.expand(len(sources.layer))
    graph = attribution_graph(sources, direction, max_nodes=300, keep=1, norms="differentiated")
    assert graph.metadata.norms == "differentiated"
    features = graph.nodes[graph.nodes["kind"] == "feature"]
    whole = sources.effects(sources.frozen.read_output(direction, norms="differentiated")).features
    named = zip(sources.layer, sources.token, sources.feature, strict=True)
    place = {tuple(map(int, name)): i for i, name in enumerate(named)}
    at = [
        place[key]
        for key in features[["layer", "token", "feature"]].itertuples(index=False, name=None)
    ]
    np.testing.assert_allclose(features["effect"], whole[at], rtol=1e-10)
    # paths over these edges are what gradients through features and norms give
    n, activation = len(sources.layer), sources.activation.numpy()
    passed = np.zeros((n, n))
    passed[rows.expanded] = rows.edges[:, :n].numpy()
    passed /= activation[:, None]
    wanted = np.linalg.solve(np.eye(n) - passed.T, rows.logit[:n].numpy())
    np.testing.assert_allclose(features["total"], wanted[at], rtol=1e-8, atol=1e-11)


def test_what_is_kept_and_what_is_said_of_it(sources: Sources, direction: Tensor) -> None:
    whole = attribution_graph(sources, direction, max_nodes=1000, keep=1)
    facts = whole.metadata
    assert facts.kept_influence == pytest.approx(1)
    assert facts.kept_effect == pytest.approx(1)
    assert facts.completeness == pytest.approx(1)
    # patch rows of the last layer reach nothing, and are no nodes
    last = (sources.layer == 3) & (sources.token > 0)
    assert facts.n_expanded == facts.n_active - int(last.sum())
    assert facts.unexpanded_share == 0
    ends = whole.nodes[whole.nodes["kind"].isin(["error", "patch", "bias"])]
    in_errors = ends.loc[ends["kind"] == "error", "influence"].sum()
    assert facts.error_share == pytest.approx(in_errors / ends["influence"].sum(), rel=1e-6)
    assert 0 < facts.error_share < 1
    into_logit = whole.edges[whole.edges["target"] == 0]
    assert into_logit["effect"].sum() == pytest.approx(facts.logit, rel=1e-10)

    small = attribution_graph(sources, direction, max_nodes=6, keep=1)
    facts = small.metadata
    assert small.nodes["kind"].iloc[[0, -1]].tolist() == ["logit", "bias"]
    assert len(small.nodes) == 8
    assert facts.n_expanded == 48
    # what would be followed further can only end in more of errors
    assert 0 < facts.error_share < whole.metadata.error_share
    assert 0 < facts.unexpanded_share < 1 - facts.error_share
    key = ["kind", "layer", "token", "feature"]
    merged = small.nodes.merge(whole.nodes, on=key, suffixes=("", "_whole"))
    # direct and total effects do not depend on what is kept
    for name in ("value", "effect", "total"):
        np.testing.assert_allclose(merged[name], merged[f"{name}_whole"], rtol=1e-9)
    weights, shares = [], []
    for number, influence in zip(small.nodes["node"], small.nodes["influence"], strict=True):
        kind = small.nodes["kind"][number]
        if kind not in ("logit", "feature"):
            continue
        kept = small.edges[small.edges["target"] == number]
        match = small.nodes.loc[number, key].tolist()
        same = [[*row] == match or (kind == row[0] == "logit") for row in whole.nodes[key].values]
        everything = whole.edges[whole.edges["target"] == int(np.argmax(same))]
        weights.append(influence)
        shares.append(kept["effect"].abs().sum() / everything["effect"].abs().sum())
        assert kept["influence"].sum() == pytest.approx(influence * shares[-1])
    assert facts.kept_effect == pytest.approx(shares[0])
    assert facts.completeness == pytest.approx(np.average(shares, weights=weights))
    # a share of influence stops a graph before the number of nodes does
    half = attribution_graph(sources, direction, max_nodes=1000, keep=0.5)
    assert 0.5 <= half.metadata.kept_influence < 0.55
    assert len(half.nodes) < len(whole.nodes)


@pytest.fixture
def graph(tiny_vit: HookedViT, images: Tensor) -> AttributionGraph:
    found = Sources(tiny_vit, random_clt(tiny_vit), images[0])
    return attribution_graph(found, torch.ones(12), max_nodes=30, image="tiny, image 0", target="x")


def test_files_come_back_as_they_were(graph: AttributionGraph, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(graphs_json([graph, graph]))
    for found in load_graphs(path):
        assert found.metadata == graph.metadata
        pd.testing.assert_frame_equal(found.nodes, graph.nodes)
        pd.testing.assert_frame_equal(found.edges, graph.edges)
        pd.testing.assert_frame_equal(found.carried, graph.carried)


def spoil(document: dict[str, Any], how: str) -> None:
    graph = document["graphs"][0]
    if how == "schema":
        document["schema"] = "vit-clt attribution graphs 2"
    elif how == "column":
        del graph["nodes"][1]["influence"]
    elif how == "numbers":
        graph["nodes"][1]["node"] = 5
    elif how == "kind":
        graph["nodes"][1]["kind"] = "neuron"
    elif how == "dangling":
        graph["edges"][0]["source"] = 99
    elif how == "downwards":
        graph["edges"][0] |= {"source": 0, "target": 1}
    elif how == "infinite":
        graph["edges"][0]["effect"] = None
    elif how == "no edge":
        graph["carried"][0]["source"] = 99
    elif how == "no head":
        next(part for part in graph["carried"] if part["by"] == "head")["head"] = None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("schema", 'has schema "vit-clt attribution graphs 2"; expected .* 3'),
        ("column", "'influence' too many or missing"),
        ("numbers", "not numbered"),
        ("kind", "'neuron'"),
        ("dangling", "no such node"),
        ("downwards", "does not lead upwards"),
        ("infinite", "no attribution graph"),
        ("no edge", "which is not there"),
        ("no head", "carried by 'head'"),
    ],
)
def test_spoilt_files_are_refused(
    graph: AttributionGraph, tmp_path: Path, how: str, said: str
) -> None:
    document = json.loads(graphs_json([graph]))
    spoil(document, how)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=said):
        load_graphs(path)


def test_no_file_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_graphs(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("nodes")
    with pytest.raises(InputError, match="is not readable JSON"):
        load_graphs(tmp_path / "text.json")


def test_the_figure_shows_every_node(graph: AttributionGraph) -> None:
    picture = np.zeros((12, 12, 3), dtype=np.uint8)
    figure = graph_figure(graph, picture, torch.arange(9.0) - 4)
    drawn = [t for t in figure.data if isinstance(t, go.Scatter) and t.mode == "markers" and t.text]
    assert sum(len(t.x) for t in drawn) == len(graph.nodes)
    texts = " ".join(text for t in drawn for text in t.text)
    feature = graph.nodes[graph.nodes["kind"] == "feature"].iloc[0]
    assert f"feature {feature['layer']}:{feature['feature']}" in texts
    assert f"{feature['value']:.4g}" in texts
    (middles,) = [t for t in figure.data if t.hovertext]
    assert len(middles.x) == min(len(graph.edges), 200)
    (source, target), (layer, head, effect) = next(iter(graph.top_heads().items()))
    named = f"of heads most by {layer}.{head} {effect:+.4g}"
    at = graph.edges.nlargest(len(graph.edges), "influence")
    place = ((at["source"] == source) & (at["target"] == target)).to_numpy().argmax()
    assert named in middles.hovertext[place]
    title = figure.layout.title.text
    assert "tiny, image 0" in title
    assert f"L0 {graph.metadata.l0:.1f}" in title
    (heat,) = [t for t in figure.data if isinstance(t, go.Heatmap)]
    assert np.array(heat.z).tolist() == [[-4, -3, -2], [-1, 0, 1], [2, 3, 4]]


def test_a_graph_tells_itself(graph: AttributionGraph, tmp_path: Path) -> None:
    context = tells_itself(graph, tmp_path)
    assert [context[key] for key in ("data", "trajectory", "l0", "target")] == [
        "tiny, image 0", "teacher", graph.metadata.l0, "x",
    ]  # fmt: skip
    features = graph.nodes[graph.nodes["kind"] == "feature"]
    assert float(graph.shown()["influence"].iloc[0]) == pytest.approx(
        features["influence"].max(), abs=5e-4
    )
    written = pd.read_csv(tmp_path / "edges.csv")
    np.testing.assert_allclose(written["effect"], graph.edges["effect"])
    # without the image beside it the graph has the whole width
    assert graph.figure().layout.xaxis.domain == (0, 1)


def test_wrong_numbers_are_refused(sources: Sources, direction: Tensor) -> None:
    with pytest.raises(InputError, match="max_nodes is 0"):
        attribution_graph(sources, direction, max_nodes=0)
    with pytest.raises(InputError, match=r"keep is 1\.5"):
        attribution_graph(sources, direction, keep=1.5)
