"""The result of a study of graphs: direct effects, graphs, and their check by intervention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from vit_clt.analysis.graphs.agreement import GraphAgreement
from vit_clt.analysis.graphs.effects import DirectEffects, logit_metrics
from vit_clt.analysis.graphs.files import graphs_json
from vit_clt.analysis.graphs.graph_result import SHARES, AttributionGraph
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.reporting.tables import csv_table, rounded
from vit_clt.choices import Norms
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHARES = {
    "replacement_score": "replacement score",
    "completeness_score": "completeness score",
    "kept_influence": "influence kept",
    "kept_effect": "direct effects kept",
    "completeness": "what drives kept nodes, kept",
    "error_share": "influence ending in errors",
    "unexpanded_share": "in features not followed",
}


@dataclass(frozen=True)
class GraphStudy(Study):
    """Direct effects, graph and interventions of each image, in the order asked for."""

    name = "direct_effects"
    extra_files = (
        "graph.html",
        "graph.json",
        "nodes.csv",
        "edges.csv",
        "carried.csv",
        "interventions.csv",
        "agreement.csv",
    )

    query: list[int]
    """Number of each image in the data."""
    targets: list[str]
    """Name of the logit of each image."""
    titles: list[str]
    """Title of each image for captions: its number, its label where known, and its target."""
    floors: list[float]
    """Mean logit of all other classes of each image, minus the contrast's logit if there is one."""
    pictures: UInt8[np.ndarray, "image height width 3"]
    effects: DirectEffects
    graphs: list[AttributionGraph]
    agreement: GraphAgreement
    l0: float
    data: str
    split: str | None
    subject: Subject
    readout: str
    max_nodes: int
    keep: float | int
    contrasted: bool
    """Whether the logit of another class is subtracted."""
    norms_reason: str | None = None
    """Why interventions chose the norms; None where they were asked for by name."""
    grouping: str | None = None
    """How nodes were grouped, as a phrase; None where they were not."""

    @property
    def norms(self) -> Norms:
        """Whether norms are held or differentiated (`Norms`)."""
        return self.effects.norms

    def facts(self) -> Facts:
        """Images, CLT, settings, and what was held."""
        held_parts = "attention patterns, active sets"
        if self.norms == "held":
            held_parts += ", LayerNorm scales, the embedding's norm"
        return Facts(
            self.data,
            len(self.query),
            "all",
            "teacher",
            self.l0,
            split=self.split,
            seed=self.agreement.seed,
            more={
                "clt": self.subject.clt,
                "query": self.query,
                "target": self.targets,
                "readout": self.readout,
                "max_nodes": self.max_nodes,
                "keep": self.keep,
                "norms": self.norms,
                "grouping": self.grouping,
                "norms_reason": self.norms_reason,
                "interventions_support": self.agreement.supports(self.norms),
                "held": held_parts,
                "floor": "logits: mean of the other classes; agreement: 97.5 % of permutations",
            },
        )

    def context(self) -> str:
        """Data, templates, CLT and L0, for captions."""
        return (
            f"{self.data}, N = {len(self.query)}, readout: {self.readout}, CLT "
            f"{self.subject.short_name}, L0 {self.l0:.1f}"
        )

    def caption(self) -> str:
        """The context, and what the effects are."""
        return (
            f"{self.context()}; direct effects in logits, norms {self.norms}, all rows, teacher "
            "trajectory"
        )

    def to_frame(self) -> pd.DataFrame:
        """`DirectEffects.to_frame`, with the number of each image in the data."""
        return self._named(self.effects.to_frame())

    def shown(self) -> pd.DataFrame:
        """`summary` to three decimals."""
        return rounded(self.summary()).rename(columns=_SHARES)

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """Agreement of predicted and measured effects, over all interventions."""
        table = self.agreement.shown()
        n = len(self.agreement.interventions)
        title = f"silencing single features, N = {n} interventions, predicted against measured"
        return {title: table[table["features"] == "all"].drop(columns="features")}

    def warnings(self) -> Sequence[str]:
        """Whether interventions refute the direct effects."""
        if self.agreement.supports(self.norms):
            return []
        r = self.agreement.live(self.norms)
        return [
            f"interventions do not support these effects (norms {self.norms}: Pearson's r "
            f"{r['pearson']:.2f} [{r['pearson_low']:.2f}, {r['pearson_high']:.2f}], floor "
            f"{r['pearson_floor_high']:.2f}, N = {int(r['n'])}): neither sizes nor signs of direct "
            "effects and edges say what silencing a feature does."
        ]

    def notes(self) -> Sequence[str]:
        """Why these norms, and how to read the agreement."""
        return [
            *([] if self.norms_reason is None else [self.norms_reason]),
            "in brackets 95 % bootstrap over interventions; floor: 97.5 % of permutations stay "
            "below; slope: measured for each unit predicted, 1 is right",
        ]

    def summary(self) -> pd.DataFrame:
        """One row per image: its logit, the parts of it, and how much the graph kept."""
        parts = self._named(self.effects.summary())
        parts.insert(1, "target", self.targets)
        parts.insert(3, "floor", self.floors)
        kept = [graph.metadata for graph in self.graphs]
        return parts.assign(
            nodes=[len(graph.nodes) - 2 for graph in self.graphs],
            **{share: [getattr(graph, share) for graph in kept] for share in SHARES},
        )

    def metrics(self) -> list[Metric]:
        """Logits and their parts, what graphs kept, and the agreement with interventions."""
        metrics = []
        for r, graph in zip(self.summary().to_dict("records"), self.graphs, strict=True):
            name = f"image_{r['image']}"
            metrics += logit_metrics(name, r, r["floor"]) + graph.shares(f"{name}_")
        return metrics + self.agreement.metrics()

    def nodes(self) -> pd.DataFrame:
        """The nodes of all graphs; the first column is the number of the image in the data."""
        return self._joined([graph.nodes for graph in self.graphs])

    def edges(self) -> pd.DataFrame:
        """The edges of all graphs; the first column is the number of the image in the data."""
        return self._joined([graph.edges for graph in self.graphs])

    def carried(self) -> pd.DataFrame:
        """What carries every edge; the first column is the number of the image in the data."""
        return self._joined([graph.carried for graph in self.graphs])

    def interventions(self) -> pd.DataFrame:
        """Every intervention, with the number of each image in the data."""
        return self._named(self.agreement.interventions)

    def figure(self) -> go.Figure:
        """Direct effects as bars, by the sources that they come from."""
        from vit_clt.analysis.graphs.effects_figure import direct_effects_figure

        return direct_effects_figure(self.effects, self.titles, self.context())

    def extras(self) -> Iterable[tuple[str, str]]:
        """The page of the graphs, the graphs themselves, and every intervention."""
        from vit_clt.analysis.graphs.report import graph_report

        return {
            "graph.html": graph_report(self),
            "graph.json": graphs_json(self.graphs),
            "nodes.csv": csv_table(self.nodes()),
            "edges.csv": csv_table(self.edges()),
            "carried.csv": csv_table(self.carried()),
            "interventions.csv": csv_table(self.interventions()),
            "agreement.csv": csv_table(self.agreement.to_frame()),
        }.items()

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(image=[self.query[i] for i in frame["image"]])

    def _joined(self, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        named = zip(self.query, frames, strict=True)
        return pd.concat([f.assign(image=row) for row, f in named], ignore_index=True)[
            ["image", *frames[0].columns]
        ]
