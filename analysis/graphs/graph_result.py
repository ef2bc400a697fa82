"""The attribution graph of one image: its nodes and edges, in tables and words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import pandas as pd

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.tables import csv_table, rounded
from vit_clt.analysis.stats.names import Texts, feature_text
from vit_clt.choices import Norms
from vit_clt.errors import InputError
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

Kind = Literal["logit", "feature", "error", "patch", "bias"]
Carrier = Literal["residual", "head", "other heads"]
"""What takes a part of an edge to its target: the residual stream alone, or an attention head."""
CARRIED = ("source", "target", "by", "layer", "head", "effect")
"""The columns of `AttributionGraph.carried`."""
SHARES = (
    *("replacement_score", "completeness_score", "kept_influence", "kept_effect", "completeness"),
    *("error_share", "unexpanded_share"),
)
"""The fields of `GraphMetadata` that say how much was dropped."""
_SHOWN = 10  # features in the table made for reading


@dataclass(frozen=True)
class GraphMetadata:
    """The image and the model that the graph describes, and how much of it was dropped."""

    image: str
    """Name of the image: data set and image number."""
    target: str
    """Name of the logit, such as its class."""
    model: str
    clt: str
    logit: float
    """The logit that the model computes; with norms held all its in-edges sum to it."""
    norms: Norms
    """Held or differentiated."""
    l0: float
    """Active features of this image per token row and source layer."""
    n_layers: int
    n_tokens: int
    patch_grid: tuple[int, int]
    """Patches down and across."""
    n_active: int
    """Active features of this image."""
    n_expanded: int
    """Active features whose in-edges were computed."""
    n_candidates: int
    """Nodes before pruning, the logit left out."""
    replacement_score: float
    """As circuit-tracer defines it (`vit_clt.analysis.graphs.scores`), before nodes are dropped."""
    completeness_score: float
    """As circuit-tracer defines it, before nodes are dropped."""
    kept_influence: float
    """Share of the influence of all nodes that the nodes kept have."""
    kept_effect: float
    """Share of sum |direct effect on the logit| that the nodes kept have."""
    completeness: float
    """Share of a kept target's in-edges that come from kept nodes, averaged over targets with their
    influence as weights."""
    error_share: float
    """Share in errors of the influence that ends in errors, patches, biases, or features whose
    in-edges were not computed."""
    unexpanded_share: float
    """Share of that influence in features whose in-edges were not computed."""


@dataclass(frozen=True)
class AttributionGraph(Study):
    """The nodes and edges that were kept of one graph."""

    name = "attribution_graph"
    extra_files = ("edges.csv", "carried.csv")

    metadata: GraphMetadata
    nodes: pd.DataFrame
    """One row per node; node 0 is the logit. Columns: node (its number), kind, layer, token,
    feature, value (logit, activation, or norm of an error or patch), effect (direct, on the logit),
    total (also through other features, kept or not), influence; empty where a kind of node has no
    such value."""
    edges: pd.DataFrame
    """One row per edge. Columns: source and target (node numbers), effect (on the target's value),
    influence (that of the target, times the share of this edge among the target's in-edges)."""
    carried: pd.DataFrame
    """The parts of every edge, which sum to its effect. Columns: source and target (of the edge),
    by (`Carrier`), layer and head (empty but for a head), effect. A head's part has it as the last
    attention step before the target; the three largest are named, "other heads" is their rest."""
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Supernodes: name -> numbers of its nodes, two or more, the logit not among them. Figures draw
    a group as one node (`vit_clt.analysis.graphs.folding`); nodes and edges are not changed.

    Raises:
        InputError: a group is smaller, or holds the logit, a node that is not there, or one of
            another group.
    """
    names: Texts = field(default_factory=dict)
    """Names of its features, which figures and tables show."""

    def __post_init__(self) -> None:
        known: set[int] = set()
        for name, nodes in self.groups.items():
            if len(nodes) < 2:
                raise InputError("groups", f'has "{name}" of {len(nodes)}; expected two nodes.')
            for node in nodes:
                if not 0 < node < len(self.nodes):
                    raise InputError(
                        "groups",
                        f'has node {node} in "{name}"; expected 1 to {len(self.nodes) - 1}.',
                    )
                if node in known:
                    raise InputError("groups", f"has node {node} twice; expected it once.")
                known.add(node)

    def node_ids(self) -> list[str]:
        """The id of every node: "7:76@3" (feature 76 of layer 7, token row 3), "error-3@5"."""
        names = {"feature": "{0.layer}:{0.feature}@{0.token}", "error": "error-{0.layer}@{0.token}"}
        names |= {"patch": "patch@{0.token}", "bias": "bias", "logit": "logit"}
        return [names[row.kind].format(row) for row in self.nodes.itertuples()]

    def grouped(self, groups: Mapping[str, Sequence[str]]) -> AttributionGraph:
        """The same graph with these groups in the place of its own.

        Args:
            groups: names of groups, with the ids of their nodes (`node_ids`); rules that make them
                are in `vit_clt.analysis.graphs.grouping`.

        Raises:
            InputError: an id is of no node, or as of `groups`.
        """
        numbers = {node: number for number, node in enumerate(self.node_ids())}
        for name, nodes in groups.items():
            for node in nodes:
                if node not in numbers:
                    raise InputError("groups", f'has "{node}" in "{name}", which is no node.')
        return replace(
            self,
            groups={name: tuple(numbers[n] for n in nodes) for name, nodes in groups.items()},
        )

    def named(self, names: Texts) -> AttributionGraph:
        """The same graph with these names of its features; those of other features are left out."""
        features = self.nodes[self.nodes["kind"] == "feature"]
        here = {(int(r.layer), int(r.feature)) for r in features.itertuples()}
        return replace(self, names={key: names[key] for key in sorted(here & names.keys())})

    def facts(self) -> Facts:
        """The image and the CLT, on the teacher trajectory."""
        graph = self.metadata
        return Facts(
            graph.image,
            1,
            "all",
            "teacher",
            graph.l0,
            more={
                "model": graph.model,
                "clt": graph.clt,
                "target": graph.target,
                "norms": graph.norms,
            },
        )

    def caption(self) -> str:
        """The image, the logit, the CLT, and what was dropped."""
        graph = self.metadata
        return (
            f"{graph.image}, N = 1: what drives {graph.target}, logit {graph.logit:.2f}; model "
            f"{graph.model}, CLT {graph.clt}, L0 {graph.l0:.1f}; teacher trajectory, attention and "
            f"active sets held, norms {graph.norms}; {len(self.nodes) - 2} of "
            f"{graph.n_candidates - 1} nodes, with {100 * graph.kept_influence:.0f} % of all "
            "influence"
        )

    def to_frame(self) -> pd.DataFrame:
        """The nodes; `edges` is a table of its own."""
        return self.nodes.copy()

    def shown(self) -> pd.DataFrame:
        """The ten features of largest influence, as text."""
        features = self.nodes[self.nodes["kind"] == "feature"].nlargest(_SHOWN, "influence")
        grid = self.metadata.patch_grid
        table = pd.DataFrame(
            {
                "feature": [
                    feature_text(int(r.layer), int(r.feature), self.names)
                    for r in features.itertuples()
                ],
                "token row": [patch_name(int(t), grid) for t in features["token"]],
                "activation": features["value"].to_numpy(),
                "direct effect": features["effect"].to_numpy(),
                "with later features": features["total"].to_numpy(),
                "influence": features["influence"].to_numpy(),
            }
        )
        return rounded(table)

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """The groups, with their members and summed effects."""
        ids = self.node_ids()
        table = [
            {
                "group": name,
                "nodes": len(nodes),
                "direct effect": self.nodes["effect"].iloc[list(nodes)].sum(),
                "influence": self.nodes["influence"].iloc[list(nodes)].sum(),
                "members": " ".join(ids[node] for node in nodes),
            }
            for name, nodes in self.groups.items()
        ]
        return {"Groups of nodes": rounded(pd.DataFrame(table))} if table else {}

    def notes(self) -> list[str]:
        """How many features were followed, and where influence ends."""
        graph = self.metadata
        return [
            f"Replacement score {graph.replacement_score:.2f}, completeness score "
            f"{graph.completeness_score:.2f} (1: nothing runs through errors). "
            f"Of {graph.n_active} active features {graph.n_expanded} were followed to "
            f"what drives them. Of the influence that ends somewhere, "
            f"{100 * graph.error_share:.0f} % ends in error nodes and "
            f"{100 * graph.unexpanded_share:.0f} % in features not followed. The nodes "
            f"kept have {100 * graph.kept_influence:.0f} % of all influence, "
            f"{100 * graph.kept_effect:.0f} % of the absolute direct effects, and "
            f"{100 * graph.completeness:.0f} % of what drives the nodes kept."
        ]

    def metrics(self) -> list[Metric]:
        """The logit, and the shares that say how much was dropped."""
        return [Metric("logit", self.metadata.logit, "logits", 1), *self.shares()]

    def shares(self, prefix: str = "") -> list[Metric]:
        """What was kept and what was dropped, as metrics whose names begin with `prefix`."""
        graph = self.metadata
        return [Metric(f"{prefix}{part}", getattr(graph, part), "fraction", 1) for part in SHARES]

    def figure(self) -> go.Figure:
        """Nodes and their strongest edges, layers bottom to top, token rows left to right."""
        from vit_clt.analysis.graphs.graph_figure import graph_figure

        return graph_figure(self)

    def extras(self) -> Iterable[tuple[str, str]]:
        """The edges, and what carries them."""
        return [("edges.csv", csv_table(self.edges)), ("carried.csv", csv_table(self.carried))]

    def residual_parts(self) -> dict[tuple[int, int], float]:
        """The part of each edge that no head carries, by source and target."""
        alone = self.carried[self.carried["by"] == "residual"]
        return {(int(r.source), int(r.target)): float(r.effect) for r in alone.itertuples()}

    def top_heads(self) -> dict[tuple[int, int], tuple[int, int, float]]:
        """Layer, head and part of the head that carries most of an edge, by source and target."""
        heads = self.carried[self.carried["by"] == "head"]
        largest = heads.iloc[heads["effect"].abs().argsort().to_numpy()]
        return {
            (int(r.source), int(r.target)): (int(r.layer), int(r.head), float(r.effect))
            for r in largest.itertuples()
        }


def patch_name(token: int, grid: tuple[int, int]) -> str:
    """ "CLS", or a patch's row and column."""
    if token == 0:
        return "CLS"
    row, column = divmod(token - 1, grid[1])
    return f"{row},{column}"
