"""The result of a study of graphs: direct effects, graphs, and their check by intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from vit_clt.analysis.graphs.agreement import GraphAgreement
from vit_clt.analysis.graphs.effects import DirectEffects
from vit_clt.analysis.graphs.files import graphs_json
from vit_clt.analysis.graphs.graph import AttributionGraph
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.reporting.tables import csv_table
from vit_clt.choices import Norms
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class GraphStudy(Study):
    """Direct effects, graph and interventions of each image, in the order asked for."""

    name = "direct_effects"
    extra_files = (
        "graph.html",
        "graph.json",
        "nodes.csv",
        "edges.csv",
        "interventions.csv",
        "agreement.csv",
    )

    rows: list[int]
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
    templates: str
    max_nodes: int
    keep: float | int
    contrasted: bool
    """Whether the logit of another class is subtracted."""

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
            len(self.rows),
            "all",
            "teacher",
            self.l0,
            split=self.split,
            seed=self.agreement.seed,
            more={
                "clt": self.subject.clt,
                "query": self.rows,
                "target": self.targets,
                "templates": self.templates,
                "max_nodes": self.max_nodes,
                "keep": self.keep,
                "norms": self.norms,
                "held": held_parts,
                "floor": "logits: mean of the other classes; agreement: 97.5 % of permutations",
            },
        )

    def context(self) -> str:
        """Data, templates, CLT and L0, for captions."""
        return (
            f"{self.data}, N = {len(self.rows)}, templates: {self.templates}, CLT "
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
        return rounded(self.summary())

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """Agreement of predicted and measured effects, over all interventions."""
        table = self.agreement.to_frame()
        n = len(self.agreement.interventions)
        title = f"silencing single features, N = {n} interventions, predicted against measured"
        return {title: rounded(table[table["chosen"] == "all"].drop(columns="chosen"))}

    def notes(self) -> Sequence[str]:
        """How to read the agreement."""
        return [
            "low, high: 95 % bootstrap over interventions; floor_high: 97.5 % of permutations stay "
            "below; slope: measured for each unit predicted, 1 is right"
        ]

    def summary(self) -> pd.DataFrame:
        """One row per image: its logit, the parts of it, and how much the graph kept."""
        bias = self.effects.bias.groupby("image")["effect"].sum()
        return pd.DataFrame(
            [
                {
                    "image": row,
                    "target": target,
                    "logit": float(self.effects.logit[i]),
                    "floor": floor,
                    "features": float(self.effects.terms[i].sum()),
                    "errors": float(self.effects.errors[i].sum()),
                    "patches": float(self.effects.patches[i].sum()),
                    "bias": float(bias[i]),
                    "nodes": len(graph.nodes) - 2,
                    "kept_influence": graph.facts.kept_influence,
                    "kept_effect": graph.facts.kept_effect,
                    "completeness": graph.facts.completeness,
                    "error_share": graph.facts.error_share,
                    "unexpanded_share": graph.facts.unexpanded_share,
                }
                for i, (row, target, floor, graph) in enumerate(
                    zip(self.rows, self.targets, self.floors, self.graphs, strict=True)
                )
            ]
        )

    def metrics(self) -> list[Metric]:
        """Logits and their parts, what graphs kept, and the agreement with interventions."""
        metrics = []
        for r in self.summary().to_dict("records"):
            name = f"image_{r['image']}"
            metrics.append(Metric(f"{name}_logit", r["logit"], "logits", 1, floor=r["floor"]))
            for part in ("features", "errors", "patches", "bias"):
                metrics.append(Metric(f"{name}_{part}", r[part], "logits", 1, baseline=r["logit"]))
            shares = ("kept_influence", "kept_effect", "completeness", "error_share")
            for part in (*shares, "unexpanded_share"):
                metrics.append(Metric(f"{name}_{part}", r[part], "fraction", 1))
        return metrics + self.agreement.metrics()

    def nodes(self) -> pd.DataFrame:
        """The nodes of all graphs; the first column is the number of the image in the data."""
        return self._joined([graph.nodes for graph in self.graphs])

    def edges(self) -> pd.DataFrame:
        """The edges of all graphs; the first column is the number of the image in the data."""
        return self._joined([graph.edges for graph in self.graphs])

    def interventions(self) -> pd.DataFrame:
        """Every intervention, with the number of each image in the data."""
        return self._named(self.agreement.interventions)

    def figure(self) -> go.Figure:
        """Direct effects as bars, by the sources that they come from."""
        from vit_clt.analysis.graphs.effects_figure import direct_effects_figure

        return direct_effects_figure(self)

    def extras(self) -> Mapping[str, str]:
        """The page of the graphs, the graphs themselves, and every intervention."""
        from vit_clt.analysis.graphs.report import graph_report

        return {
            "graph.html": graph_report(self),
            "graph.json": graphs_json(self.graphs),
            "nodes.csv": csv_table(self.nodes()),
            "edges.csv": csv_table(self.edges()),
            "interventions.csv": csv_table(self.interventions()),
            "agreement.csv": csv_table(self.agreement.to_frame()),
        }

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(image=[self.rows[i] for i in frame["image"]])

    def _joined(self, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        named = zip(self.rows, frames, strict=True)
        return pd.concat([f.assign(image=row) for row, f in named], ignore_index=True)[
            ["image", *frames[0].columns]
        ]


def rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with its numbers as text of three decimals."""
    numbers = frame.select_dtypes("float").columns
    return frame.assign(**{name: frame[name].map(lambda v: f"{v:.3f}") for name in numbers})
