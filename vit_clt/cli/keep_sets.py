"""`vit-clt keep-sets`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Fill, ScoreKind, Templates, TokenKind
from vit_clt.cli.options import CLTOptions, SeedOptions, StudyOptions, print_table


@dataclass(kw_only=True)
class KeepSets(CLTOptions, StudyOptions, SeedOptions):
    """All sets of k source layers of one layer: where does the chosen one stand among them?

    Example: vit-clt keep-sets --clt out/clt --data digits --k 4 --fill mean --out out/keep_sets
    """

    k: int = 4
    """Source layers a set holds."""
    tokens: TokenKind = "cls"
    """Rows overwritten."""
    target: int = -1
    """Layer whose MLP output is overwritten; -1 is the last."""
    fill: Fill = "zero"
    """What stands in for a dropped term."""
    kind: ScoreKind = "projection"
    """Score that chooses a set."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates."""

    def run(self) -> None:
        """Read every set, draw, and report."""
        import pandas as pd

        from vit_clt.analysis import contribution_scores, keep_sets
        from vit_clt.analysis.ablations.all_sets import check_k
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.metrics import metrics_json
        from vit_clt.zero_shot import ZeroShot

        folder = self.study_folder("keep_sets")
        vit, clt, data = self.load_all(self.device)
        zs = ZeroShot(vit, data.class_names, self.templates)
        check_k(self.k, self.target, vit.cfg.n_layers)
        result = keep_sets(
            vit,
            clt,
            data,
            zs,
            k=self.k,
            scores=contribution_scores(
                vit, clt, data, tokens=self.tokens, kind=self.kind, progress=True
            ),
            target=self.target,
            tokens=self.tokens,
            fill=self.fill,
            seed=self.seed,
            progress=True,
        )
        rows = [
            {
                "": r.set,
                "top-1 %": f"{100 * r.top1:.2f}",
                "loss (nats)": f"{r.loss:.4f}",
                "loss above chosen": f"{r.loss_above_chosen:.4f} [{r.loss_above_chosen_low:.4f}, "
                f"{r.loss_above_chosen_high:.4f}]",
                "rank by loss": f"{r.rank_loss:,}",
                "sets better %": f"{100 * r.better_loss:.1f}",
                "rank by top-1": f"{r.rank_top1:,}",
                "sources": r.sources,
            }
            for r in result.marks().itertuples()
        ]
        for name in ("original", "full", "bias_only", "floor_mean", "floor_zero"):
            reading = result.readings[name]
            cells = {"top-1 %": f"{100 * reading.top1:.2f}", "loss (nats)": f"{reading.loss:.4f}"}
            rows.append({"": name, **cells})
        shown = pd.DataFrame(rows).fillna("-")
        layers = result.layers()
        most = layers.loc[layers["explained"].fillna(0).idxmax()]
        caption = (
            f"{data.name}, N = {len(data)}, {result.extent} sources of layer {result.target}, "
            f"{self.tokens} rows, teacher trajectory, dropped terms: {self.fill}, templates: "
            f"{self.templates}, chosen by {self.kind}, L0 {result.l0:.1f}, seed {self.seed}; "
            f"rank correlation of summed score and loss {result.spearman():.2f}; membership of "
            f"layer {int(most.source)} explains most of the loss: {100 * most.explained:.0f} % "
            f"(mean {most.loss_with:.4f} nats with, {most.loss_without:.4f} without)"
        )
        context = {
            "command": "keep-sets",
            "data": data.name,
            "split": data.split,
            "tokens": self.tokens,
            "trajectory": "teacher",
            "l0": result.l0,
            "fill": self.fill,
            "seed": self.seed,
            "templates": self.templates,
            "target": result.target,
            "k": result.k,
            "sets": result.extent,
            "marked": {mark.name: list(mark.sources) for mark in result.marked},
            "ranked_by": result.ranked_by,
            "no_op": result.no_op,
        }
        folder.open()
        write_study(
            folder,
            "keep_sets",
            result.figure(),
            result.to_frame(),
            caption,
            shown=shown,
            png=self.png,
        )
        folder.write("metrics.json", metrics_json(result.metrics(), **context))
        print(caption)
        print_table(shown)
        if result.no_op:
            print("these rows cannot reach the output: a no-op")
        print(f"written to {folder.path}")
