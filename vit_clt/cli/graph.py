"""`vit-clt graph`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Norms, Templates
from vit_clt.cli.options import CLTOptions, SeedOptions, StudyOptions


@dataclass(kw_only=True)
class Graph(CLTOptions, StudyOptions, SeedOptions):
    """What drives a class logit of an image: features, errors, patches, and the paths between.

    Example: vit-clt graph --clt out/clt --data digits --query 0 5 17 --out out/graph
    """

    query: tuple[int, ...] = (0, 1, 2)
    """Rows of --data, an image each."""
    target: str = "predicted"
    """Whose logit: "predicted", "label", or a class: its name, a part that no other name holds, or
    its number."""
    contrast: str | None = None
    """A class whose logit is subtracted, named likewise."""
    max_nodes: int = 60
    """Features, errors and patches kept in a graph, at most."""
    keep: float = 0.8
    """Share of influence at which a graph stops growing."""
    norms: Norms = "held"
    """LayerNorms and the embedding's norm: held, so that terms sum to the logit, or differentiated,
    so that they say what a small change does."""
    interventions: int = 64
    """Features silenced an image to check the effects, half of them drawn at random."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates."""

    def run(self) -> None:
        """Take apart, draw, check, and report."""
        from vit_clt.analysis import graph_study
        from vit_clt.analysis.graphs.result import GraphStudy
        from vit_clt.zero_shot import ZeroShot

        folder = self.folder_of(GraphStudy)
        vit, clt, data = self.load_all(self.device)
        study = graph_study(
            vit,
            clt,
            data,
            ZeroShot(vit, data.class_names, self.templates),
            self.query,
            target=self.target,
            contrast=self.contrast,
            max_nodes=self.max_nodes,
            keep=self.keep,
            norms=self.norms,
            interventions=self.interventions,
            clt_name=self.clt,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, study, "graph")
