"""`vit-clt ablate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_clt.cli.options import CLTOptions, SeedOptions, StudyOptions, Tokens, print_table


@dataclass(kw_only=True)
class Ablate(CLTOptions, StudyOptions, SeedOptions):
    """Keep or drop the top-k source layers of one layer's reconstruction, and read the model.

    Example: vit-clt ablate --clt out/clt --data digits --tokens cls --fill mean --out out/ablation
    """

    tokens: Tokens = "cls"
    """Rows overwritten."""
    target: int = -1
    """Layer whose MLP output is overwritten; -1 is the last."""
    fill: Literal["zero", "mean", "resample"] = "zero"
    """What stands in for a dropped term."""
    kind: Literal["projection", "centred", "norm", "loo", "loo_r2"] = "projection"
    """Score that ranks the sources."""
    templates: Literal["single", "ensemble"] = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates."""

    def run(self) -> None:
        """Ablate, draw, and report."""
        import pandas as pd

        from vit_clt.analysis import ablation_curves, contribution_scores
        from vit_clt.analysis.ablation_figure import ablation_figure
        from vit_clt.analysis.exports import write_study
        from vit_clt.hooks import layer_list
        from vit_clt.metrics import metrics_json
        from vit_clt.zero_shot import ZeroShot

        folder = self.study_folder("ablation")
        vit, clt, data = self.load_all(self.device)
        zs = ZeroShot(vit, data.class_names, self.templates)
        layer_list(self.target, vit.cfg.n_layers)
        scores = contribution_scores(
            vit, clt, data, tokens=self.tokens, kind=self.kind, progress=True
        )
        curves = ablation_curves(
            vit,
            clt,
            data,
            zs,
            scores=scores,
            target=self.target,
            tokens=self.tokens,
            fill=self.fill,
            seed=self.seed,
            progress=True,
        )
        frame = curves.to_frame()
        folder.open()
        rows = [
            (f"{r.mode} {r.k}", f"{100 * r.top1:.2f}", f"{r.loss:.4f}", r.sources or "-")
            for r in frame.itertuples()
        ]
        for name in ("original", "full", "bias_only", "floor_mean", "floor_zero"):
            reading = curves.readings[name]
            rows.append((name, f"{100 * reading.top1:.2f}", f"{reading.loss:.4f}", "-"))
        shown = pd.DataFrame(rows, columns=["", "top-1 %", "loss (nats)", "top sources"])
        caption = (
            f"{data.name}, N = {len(data)}, layer {curves.target}, {self.tokens} rows, dropped "
            f"terms: {self.fill}, templates: {self.templates}, ranked by {self.kind}, L0 "
            f"{curves.l0:.1f}"
        )
        figure = ablation_figure(curves)
        write_study(folder, "ablation", figure, frame, caption, shown=shown, png=self.png)
        context = {
            "command": "ablate",
            "data": data.name,
            "split": data.split,
            "tokens": self.tokens,
            "trajectory": "teacher",
            "l0": curves.l0,
            "fill": self.fill,
            "seed": self.seed,
            "templates": self.templates,
            "target": curves.target,
            "ranking": curves.ranking,
            "ranked_by": curves.ranked_by,
            "no_op": curves.no_op,
        }
        folder.write("metrics.json", metrics_json(curves.metrics(), **context))
        print(caption)
        print_table(shown)
        if curves.no_op:
            print("these rows cannot reach the output: a no-op")
        print(f"written to {folder.path}")
