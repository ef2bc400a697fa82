"""Replacement and completeness score against dense sums over powers of the adjacency matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders import random_clt, tiny_clip
from torch import Tensor

from vit_clt.analysis.graphs.graph import attribution_graph
from vit_clt.analysis.graphs.influence import InEdges
from vit_clt.analysis.graphs.scores import graph_scores
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.hooks import HookedViT


@pytest.fixture(scope="module")
def sources() -> Sources:
    vit = HookedViT(tiny_clip()).double()
    image = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(2)).double()
    return Sources(vit, random_clt(vit, n_features=20).double(), image)


@pytest.fixture(scope="module")
def direction() -> Tensor:
    return torch.randn(12, generator=torch.Generator().manual_seed(1)).double()


def dense_scores(in_edges: InEdges) -> tuple[float, float]:
    """Influence by powers of the whole matrix, whose last node is the logit."""
    sources = in_edges.sources
    n_active, n_errors = len(sources.layer), sources.errors.shape[0] * sources.errors.shape[1]
    kept = [*in_edges.expanded, *range(n_active, len(in_edges.logit) - 1)]
    n_features, n = len(in_edges.expanded), len(kept) + 1
    matrix = np.zeros((n, n))
    matrix[:n_features, :-1] = in_edges.edges.numpy()[:, kept]
    matrix[-1, :-1] = in_edges.logit.numpy()[kept]
    matrix = np.abs(matrix)
    matrix /= np.maximum(matrix.sum(1, keepdims=True), 1e-10)
    weights = np.zeros(n)
    weights[-1] = 1
    influence, step = np.zeros(n), weights @ matrix
    while step.any():
        influence += step
        step = step @ matrix
    errors = slice(n_features, n_features + n_errors)
    inputs = influence[errors.stop : -1].sum()
    replacement = inputs / (inputs + influence[errors].sum())
    explained = 1 - matrix[:, errors].sum(1)
    reached = influence + weights
    return replacement, (explained * reached).sum() / reached.sum()


@pytest.mark.parametrize("n", [5, 1000])
@pytest.mark.parametrize("norms", ["held", "differentiated"])
def test_scores_are_those_of_the_dense_matrix(
    sources: Sources, direction: Tensor, n: int, norms: str
):
    in_edges = InEdges(sources, direction, norms)
    in_edges.expand(n)
    found = graph_scores(in_edges)
    assert tuple(found) == pytest.approx(dense_scores(in_edges), rel=1e-9)
    assert 0 < found.replacement < 1
    assert 0 < found.completeness < 1


def test_without_errors_both_are_one(sources: Sources, direction: Tensor):
    in_edges = InEdges(sources, direction)
    in_edges.expand(1000)
    n_active, n_errors = len(sources.layer), sources.errors.shape[0] * sources.errors.shape[1]
    in_edges.logit[n_active : n_active + n_errors] = 0
    in_edges.edges[:, n_active : n_active + n_errors] = 0
    assert tuple(graph_scores(in_edges)) == pytest.approx((1, 1))


def test_where_no_influence_reaches_inputs_or_errors(sources: Sources, direction: Tensor):
    in_edges = InEdges(sources, direction)
    in_edges.expand(1000)
    n_active = len(sources.layer)
    in_edges.logit[n_active:] = 0
    in_edges.edges[:, n_active:] = 0
    scores = graph_scores(in_edges)
    assert math.isnan(scores.replacement)
    assert scores.completeness == pytest.approx(1)


def test_a_graph_says_its_scores(sources: Sources, direction: Tensor):
    graph = attribution_graph(sources, direction, max_nodes=1000, keep=1)
    in_edges = InEdges(sources, direction)
    in_edges.expand(1000)
    scores = graph_scores(in_edges)
    assert graph.metadata.replacement_score == pytest.approx(scores.replacement)
    assert graph.metadata.completeness_score == pytest.approx(scores.completeness)
    assert f"Replacement score {scores.replacement:.2f}" in graph.notes()[0]
    named = {metric.name: metric.value for metric in graph.metrics()}
    assert named["completeness_score"] == pytest.approx(scores.completeness)
