"""Supernodes: rules of grouping, sums of a folded graph, files, and `--group`."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import one_sentence, tells_itself
from builders import noise, random_clt
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.frozen_oracle import double_clt, double_vit

from vit_clt import AbsTopK, CrossLayerTranscoder, InputError, ReLUTopK
from vit_clt.analysis import attribution_graph, graph_study
from vit_clt.analysis.graphs.files import graphs_json, load_graphs
from vit_clt.analysis.graphs.folding import fold
from vit_clt.analysis.graphs.graph_figure import graph_figure
from vit_clt.analysis.graphs.graph_result import AttributionGraph
from vit_clt.analysis.graphs.group_file import read_groups
from vit_clt.analysis.graphs.grouping import (
    decoder_cosines,
    groups_by_decoder,
    groups_by_hand,
    groups_by_name,
)
from vit_clt.analysis.graphs.influence import InEdges
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.cli import main
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.readouts.zero_shot import ZeroShot

IMAGE = noise(3, 12, 12, seed=1)


def made(max_nodes: int, **kind: Any) -> tuple[AttributionGraph, CrossLayerTranscoder, Sources]:
    vit = double_vit()
    sources = Sources(vit, double_clt(vit, **kind), IMAGE)
    graph = attribution_graph(sources, noise(12, seed=4), max_nodes=max_nodes, keep=1.0)
    return graph, sources.clt, sources


@pytest.fixture(scope="module")
def made_graph() -> tuple[AttributionGraph, CrossLayerTranscoder, Sources]:
    return made(40, sparsifier=ReLUTopK(k=3))


@pytest.fixture(scope="module")
def graph(made_graph: tuple[AttributionGraph, CrossLayerTranscoder, Sources]) -> AttributionGraph:
    return made_graph[0]


@settings(deadline=None, max_examples=30)
@given(parts=st.lists(st.integers(0, 4), min_size=40, max_size=40))
def test_folding_keeps_every_sum(graph: AttributionGraph, parts: list[int]) -> None:
    """Nodes are dealt to at most four groups; part 0 stays alone."""
    ids, dealt = graph.node_ids(), dict(enumerate(parts, start=1))
    groups = {
        f"part {part}": [ids[n] for n in range(1, len(ids)) if dealt.get(n) == part]
        for part in range(1, 5)
    }
    grouped = graph.grouped({name: nodes for name, nodes in groups.items() if len(nodes) > 1})
    folded = fold(grouped)
    unit = {n: u for u, row in enumerate(folded.nodes["members"]) for n in row}
    assert sorted(unit) == list(range(len(ids)))
    assert unit[0] == 0
    # in-edges and out-edges of every unit, edge by edge in a loop
    into, out = np.zeros(len(folded.nodes)), np.zeros(len(folded.nodes))
    for edge in graph.edges.itertuples():
        into[unit[edge.target]] += edge.effect
        out[unit[edge.source]] += edge.influence
    for u in range(len(folded.nodes)):
        edges = folded.edges
        assert edges.loc[edges["target"] == u, "effect"].sum() == pytest.approx(into[u], abs=1e-12)
        assert edges.loc[edges["source"] == u, "influence"].sum() == pytest.approx(out[u])
    for column in ("effect", "influence"):
        assert folded.nodes[column].sum() == pytest.approx(graph.nodes[column].sum())
    assert folded.edges["pairs"].sum() == len(graph.edges)
    assert not folded.edges.duplicated(["source", "target"]).any()


def test_all_in_edges_of_a_group_sum_to_its_value(
    made_graph: tuple[AttributionGraph, CrossLayerTranscoder, Sources],
) -> None:
    """With norms held and every candidate in, what drives the members is their activations."""
    graph, _, sources = made_graph
    in_edges = InEdges(sources, noise(12, seed=4))
    in_edges.expand(len(sources.layer))
    whole = dict(zip(in_edges.expanded, in_edges.edges.sum(1).tolist(), strict=True))
    places = {
        f"{int(s)}:{int(i)}@{int(t)}": n
        for n, (s, t, i) in enumerate(
            zip(sources.layer, sources.token, sources.feature, strict=True)
        )
    }
    features = [node for node in graph.node_ids() if ":" in node]
    folded = fold(graph.grouped({"some": features[:5], "others": features[5:9]}))
    values = folded.nodes[folded.nodes["kind"] == "group"].set_index("group")["value"]
    for name, nodes in (("some", features[:5]), ("others", features[5:9])):
        driven = sum(whole[places[node]] for node in nodes)
        assert values[name] == pytest.approx(driven, rel=1e-9)


def test_without_groups_nothing_is_folded(graph: AttributionGraph) -> None:
    folded = fold(graph)
    columns = list(graph.nodes.columns)
    assert (
        folded.nodes[columns]
        .astype(object)
        .fillna("-")
        .equals(graph.nodes.astype(object).fillna("-"))
    )
    for column in graph.edges.columns:
        assert folded.edges[column].tolist() == graph.edges[column].tolist()


def test_a_group_is_placed_between_its_members(graph: AttributionGraph) -> None:
    ids = graph.node_ids()
    features = graph.nodes[graph.nodes["kind"] == "feature"]
    low, high = (int(features["layer"].apply(int).agg(f"idx{end}")) for end in ("min", "max"))
    row = fold(graph.grouped({"both": [ids[low], ids[high]]})).nodes
    (both,) = row[row["kind"] == "group"].to_dict("records")
    levels = [int(graph.nodes["layer"][n]) for n in (low, high)]
    assert both["layer"] == int(sum(levels) / 2 + 0.5)
    more = max((low, high), key=lambda n: graph.nodes["influence"][n])
    assert both["token"] == graph.nodes["token"][more]
    patches = [node for node in ids if node.startswith("patch")][:2]
    row = fold(graph.grouped({"inputs": [*patches, "bias"]})).nodes
    (inputs,) = row[row["kind"] == "group"].to_dict("records")
    assert pd.isna(inputs["layer"])
    assert np.isnan(inputs["value"])


KINDS: dict[str, dict[str, Any]] = {
    "relu_topk": {"sparsifier": ReLUTopK(k=3)},
    "abs_topk": {"sparsifier": AbsTopK(k=3)},
    "per layer": {"per_layer": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_of_decoders_are_those_of_a_loop(kind: str) -> None:
    graph, clt, _ = made(30, **KINDS[kind])
    rows = graph.nodes[graph.nodes["kind"] == "feature"]
    features = sorted(
        {(int(r.layer), int(r.feature), 1 if r.value > 0 else -1) for r in rows.itertuples()}
    )
    found = decoder_cosines(clt, features)
    for a, b in combinations(range(len(features)), 2):
        (s, i, sign), (other, j, other_sign) = features[a], features[b]
        ends = [s] if kind == "per layer" else range(s, clt.config.n_layers)
        other_ends = [other] if kind == "per layer" else range(other, clt.config.n_layers)
        common = [l for l in ends if l in other_ends]
        if not common:
            assert found[a, b] == 0
            continue
        left, right = (
            torch.cat([each * clt.decoder(source, l)[feature] for l in common])
            for source, feature, each in ((s, i, sign), (other, j, other_sign))
        )
        expected = float(left @ right / (left.norm() * right.norm()))
        assert float(found[a, b]) == pytest.approx(expected, abs=1e-9)
    assert found.diagonal().tolist() == pytest.approx([1.0] * len(features))


def naive_clusters(cosines: np.ndarray, least: float) -> set[frozenset[int]]:
    """Average linkage: merge the two groups of highest mean cosine, while that is enough."""
    groups = [frozenset([i]) for i in range(len(cosines))]
    while len(groups) > 1:
        means = {
            (a, b): float(np.mean([cosines[i, j] for i in a for j in b]))
            for a, b in combinations(groups, 2)
        }
        (a, b), best = max(means.items(), key=lambda pair: pair[1])
        if best < least:
            break
        groups = [each for each in groups if each not in (a, b)] + [a | b]
    return set(groups)


@pytest.mark.parametrize("cosine", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["relu_topk", "abs_topk"])
def test_clusters_are_those_of_average_linkage_by_hand(kind: str, cosine: float) -> None:
    graph, clt, _ = made(40, **KINDS[kind])
    rows = graph.nodes[graph.nodes["kind"] == "feature"]
    keys = [(int(r.layer), int(r.feature), 1 if r.value > 0 else -1) for r in rows.itertuples()]
    distinct = sorted(set(keys))
    ids = graph.node_ids()
    clusters = naive_clusters(decoder_cosines(clt, distinct).numpy(), cosine)
    expected = set()
    for cluster in clusters:
        wanted = {distinct[i] for i in cluster}
        nodes = [ids[n] for n, key in zip(rows["node"], keys, strict=True) if key in wanted]
        if len(nodes) > 1:
            expected.add(frozenset(nodes))
    found = groups_by_decoder(graph, clt, cosine)
    assert {frozenset(nodes) for nodes in found.values()} == expected
    assert sum(map(len, found.values())) == sum(map(len, expected))
    assert groups_by_decoder(graph, clt, cosine) == found


def test_planted_decoders_make_one_group_across_layers() -> None:
    vit = double_vit()
    clt = double_clt(vit, sparsifier=ReLUTopK(k=3))
    sources = Sources(vit, clt, IMAGE)
    graph = attribution_graph(sources, noise(12, seed=4), max_nodes=40, keep=1.0)
    rows = graph.nodes[graph.nodes["kind"] == "feature"]
    first = {int(s): int(i) for s, i in zip(rows["layer"], rows["feature"], strict=True)}
    assert len(first) > 2
    direction = noise(4, 16, seed=9)
    for layer, feature in first.items():
        for target in range(layer, 4):
            clt.decoder(layer, target)[feature] = (1 + layer) * direction[target]
    found = groups_by_decoder(graph, clt, 0.9)
    wanted = {
        node
        for node in graph.node_ids()
        if any(node.startswith(f"{s}:{i}@") for s, i in first.items())
    }
    assert wanted in [set(nodes) for nodes in found.values()]
    (name,) = (name for name, nodes in found.items() if set(nodes) == wanted)
    assert name.endswith(f"and {len(first) - 1} more")


def test_features_of_one_name_are_one_group(graph: AttributionGraph) -> None:
    rows = graph.nodes[graph.nodes["kind"] == "feature"]
    keys = [(int(r.layer), int(r.feature)) for r in rows.itertuples()]
    names = {keys[0]: "stripes", keys[1]: "stripes", keys[2]: "alone"}
    found = groups_by_name(graph, names)
    ids = graph.node_ids()
    wanted = [ids[n] for n, key in zip(rows["node"], keys, strict=True) if key in keys[:2]]
    assert found["stripes"] == wanted
    alone = keys.count(keys[2])
    assert ("alone" in found) == (alone > 1)


def test_groups_by_hand_take_what_each_graph_has(graph: AttributionGraph) -> None:
    feature = next(node for node in graph.node_ids() if ":" in node)
    rest = [node for node in graph.node_ids() if node.startswith("error")][:2]
    smaller, *_ = made(3)
    given_groups = {"whole": [feature.partition("@")[0], *rest]}
    found = groups_by_hand([graph, smaller], given_groups)
    on_rows = [node for node in graph.node_ids() if node.startswith(f"{given_groups['whole'][0]}@")]
    assert found[0] == {"whole": [*on_rows, *rest]}
    with pytest.raises(InputError, match='"9:999", which is a node of no graph') as error:
        groups_by_hand([graph], {"a": [rest[0], rest[1], "9:999"]})
    one_sentence(error)


def test_groups_are_saved_and_read_back(graph: AttributionGraph, tmp_path: Path) -> None:
    ids = graph.node_ids()
    grouped = graph.grouped({"a <b>": ids[1:4], "é, ~": ids[5:7]})
    path = tmp_path / "graph.json"
    path.write_text(graphs_json([grouped, graph]))
    again, plain = load_graphs(path)
    assert again.groups == grouped.groups == {"a <b>": (1, 2, 3), "é, ~": (5, 6)}
    assert plain.groups == {}
    assert graphs_json([again, plain]) == path.read_text()
    tells_itself(grouped, tmp_path / "told")
    for broken, complaint in (
        ({"a": [1]}, "of 1; expected two"),
        ({"a": [0, 1]}, "has node 0"),
        ({"a": [1, 999]}, "has node 999"),
        ({"a": [1, 2], "b": [2, 3]}, "has node 2 twice"),
        ({"a": [1, "2"]}, "is no list of numbers"),
        ({"a": 3}, "is no list of numbers"),
        ([], "has no attribute"),
    ):
        document = json.loads(graphs_json([graph]))
        document["graphs"][0]["groups"] = broken
        path.write_text(json.dumps(document))
        with pytest.raises(InputError, match=complaint) as error:
            load_graphs(path)
        one_sentence(error)


def test_the_figure_draws_groups_as_one(graph: AttributionGraph) -> None:
    ids = graph.node_ids()
    members = ids[1:4]
    plain, folded = graph_figure(graph), graph_figure(graph.grouped({"<three>": members}))

    def hovers(figure: Any) -> list[str]:
        drawn = [t for t in figure.data if t.mode == "markers" and t.text is not None]
        return [text for trace in drawn for text in trace.text]

    assert len(hovers(folded)) == len(hovers(plain)) - 2
    (text,) = (text for text in hovers(folded) if text.startswith("group &lt;three&gt;: 3 nodes"))
    assert all(node in text for node in members)
    assert any(t.mode == "text" and "&lt;three&gt;" in t.text for t in folded.data)
    assert "1 groups stand for 3 nodes" in folded.layout.title.text


@pytest.mark.parametrize(
    ("groups", "complaint"),
    [
        ({"a": ["1:1@99", "bias"]}, "which is no node"),
        ({"a": ["bias"]}, "expected two nodes"),
        ({"a": ["logit", "bias"]}, "has node 0"),
    ],
)
def test_groups_of_what_is_not_there_are_refused(
    graph: AttributionGraph, groups: dict[str, list[str]], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        graph.grouped(groups)
    one_sentence(error)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{}", "holds no groups"),
        ('{"": ["bias"]}', "a group without a name"),
        ('{"a": "7:76"}', "is no list"),
        ('{"a": ["7-76"]}', "expected 7:76"),
        ('{"a": [7]}', "expected 7:76"),
        ('{"a": ["1:2", "1:2"]}', "twice"),
        ("[1]", "expected a JSON object"),
    ],
)
def test_files_of_groups_are_checked(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    path.write_text(content)
    with pytest.raises(InputError, match=complaint) as error:
        read_groups(path)
    one_sentence(error)


def test_the_command_groups_by_decoder_and_by_file(digits_vit: HookedViT, tmp_path: Path) -> None:
    clt = random_clt(digits_vit)
    clt.save_pretrained(tmp_path / "clt")
    args = ["graph", "--clt", str(tmp_path / "clt"), "--limit", "4", "--query", "2"]
    args += ["--interventions", "4", "--max-nodes", "80", "--keep", "1", "--norms", "held"]
    alike = ["--group", "decoder", "--group-cosine", "0.05"]
    assert main([*args, *alike, "--out", str(tmp_path / "a")]) == 0
    (graph,) = load_graphs(tmp_path / "a" / "graph.json")
    expected = groups_by_decoder(graph, clt, 0.05)
    assert expected
    assert {name: [graph.node_ids()[n] for n in nodes] for name, nodes in graph.groups.items()} == (
        expected
    )
    context = json.loads((tmp_path / "a" / "metrics.json").read_text())["context"]
    assert context["grouping"].startswith("features of one decoder cluster")
    chosen = graph.node_ids()[1:4]
    (tmp_path / "groups.json").write_text(json.dumps({"mine": chosen}))
    file = str(tmp_path / "groups.json")
    assert main([*args, "--group", file, "--out", str(tmp_path / "b")]) == 0
    (again,) = load_graphs(tmp_path / "b" / "graph.json")
    assert again.groups == {"mine": (1, 2, 3)}
    assert "Groups of nodes" not in (tmp_path / "b" / "nodes.csv").read_text()
    assert "mine" in (tmp_path / "b" / "graph.html").read_text()


def test_a_study_groups_by_name(
    digits_vit: HookedViT, digits_test: ImageData, tmp_path: Path
) -> None:
    clt = random_clt(digits_vit)
    zs = ZeroShot(digits_vit, digits_test.class_names, "single")
    names = {(s, i): f"half {s // 4}" for s in range(8) for i in range(24)}
    options: dict[str, Any] = {"interventions": 4, "max_nodes": 80, "keep": 1.0}
    options |= {"norms": "held", "group": "name"}
    study = graph_study(digits_vit, clt, digits_test, zs, [2], feature_names=names, **options)
    (graph,) = study.graphs
    assert graph.groups
    for name, nodes in graph.groups.items():
        assert {f"half {graph.nodes['layer'][n] // 4}" for n in nodes} == {name}
    assert study.facts().more["grouping"] == "features of one name"
    first = graph.shown()["feature"][0]
    assert " half " in first
    assert graph.names.items() <= names.items()
    assert f"feature {first}" in graph_figure(graph.grouped({})).to_json()
    path = tmp_path / "graph.json"
    path.write_text(graphs_json([graph]))
    assert load_graphs(path)[0].names == graph.names
    broken = json.loads(path.read_text())
    for bad in ({"7": "x"}, {"7:1": 3}, ["7:1"]):
        broken["graphs"][0]["names"] = bad
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match="is no attribution graph"):
            load_graphs(path)
    with pytest.raises(InputError, match="features have no names") as error:
        graph_study(digits_vit, clt, digits_test, zs, [2], **options)
    one_sentence(error)


def test_bad_groupings_are_refused_at_once(refused: Callable[..., str], tmp_path: Path) -> None:
    sentence = refused("graph", "--clt", "x", "--group", "absent.json")
    assert (
        sentence
        == '--group is "absent.json"; expected decoder, name, or a JSON file, which was not found.'
    )
    sentence = refused("graph", "--clt", "x", "--group", "decoder", "--group-cosine", "0")
    assert sentence == "--group-cosine is 0; expected above 0 and at most 1."
    sentence = refused("graph", "--clt", "x", "--group", "name")
    assert sentence == '--group is "name", but --names is missing; expected both.'
    (tmp_path / "bad.json").write_text('{"a": ["x"]}')
    sentence = refused("explore", "--clt", "x", "--group", str(tmp_path / "bad.json"))
    assert "holds 'x'; expected 7:76" in sentence
