"""`vit-clt graph`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Norms, Templates
from vit_clt.cli.options import CLTOptions, SeedOptions, StudyOptions, print_table


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
        from vit_clt.analysis.graphs.effects_figure import direct_effects_figure
        from vit_clt.analysis.graphs.files import graphs_json
        from vit_clt.analysis.graphs.report import graph_report, rounded
        from vit_clt.analysis.graphs.study import graph_study
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.metrics import metrics_json
        from vit_clt.zero_shot import ZeroShot

        names = ("direct_effects", "graph", "nodes", "edges", "interventions", "agreement")
        folder = self.study_folder(*names)
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
        facts = {
            "Model": f"{vit.cfg.model}, {vit.cfg.n_layers} layers of width {vit.cfg.d_model}",
            "CLT": f"{self.clt}, {clt.config.n_features} features a layer, L0 {study.l0:.1f} on "
            "all rows of these images",
            "Images": f"{data.name}, N = {len(study.rows)}, teacher trajectory",
            "Floor": "mean logit of the other classes"
            + ("" if self.contrast is None else " minus the contrast's"),
            "Prompts": self.templates,
            "Seed": f"{self.seed} (interventions, intervals)",
        }
        context = (
            f"{data.name}, N = {len(study.rows)}, templates: {self.templates}, CLT "
            f"{self.clt.rstrip('/').rsplit('/', 1)[-1]}, L0 {study.l0:.1f}"
        )
        caption = (
            f"{context}; direct effects in logits, norms {self.norms}, all rows, teacher trajectory"
        )
        summary = study.summary()
        shown = rounded(summary)
        folder.open()
        write_study(
            folder,
            "direct_effects",
            direct_effects_figure(study.effects, study.titles, context),
            study.terms(),
            caption,
            shown=shown,
            png=self.png,
        )
        folder.write("graph.html", graph_report(study, facts))
        folder.write("graph.json", graphs_json(study.graphs))
        folder.write("nodes.csv", study.nodes().to_csv(index=False))
        folder.write("edges.csv", study.edges().to_csv(index=False))
        agreement = study.agreement.to_frame()
        folder.write("interventions.csv", study.interventions().to_csv(index=False))
        folder.write("agreement.csv", agreement.to_csv(index=False))
        settings = {
            "command": "graph",
            "data": data.name,
            "split": data.split,
            "tokens": "all",
            "trajectory": "teacher",
            "l0": study.l0,
            "seed": self.seed,
            "clt": self.clt,
            "query": study.rows,
            "target": study.targets,
            "templates": self.templates,
            "max_nodes": self.max_nodes,
            "keep": self.keep,
            "norms": self.norms,
            "held": "attention patterns, active sets"
            + (", LayerNorm scales, the embedding's norm" if self.norms == "held" else ""),
            "floor": "logits: mean of the other classes; agreement: 97.5 % of permutations",
        }
        folder.write("metrics.json", metrics_json(study.metrics(), **settings))
        print(caption)
        print_table(shown)
        n = len(study.agreement.interventions)
        print(f"\nsilencing single features, N = {n} interventions, predicted against measured")
        print_table(rounded(agreement[agreement["chosen"] == "all"].drop(columns="chosen")))
        print(
            "low, high: 95 % bootstrap over interventions; floor_high: 97.5 % of permutations stay "
            "below; slope: measured for each unit predicted, 1 is right"
        )
        print(f"written to {folder.path}")
