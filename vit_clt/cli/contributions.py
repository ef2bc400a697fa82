"""`vit-clt contributions`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.cli.options import CLTOptions, OutputOptions, SeedOptions, Tokens, print_table

FILES = ("contributions.html", "contributions.csv", "metrics.json")


@dataclass(kw_only=True)
class Contributions(CLTOptions, OutputOptions, SeedOptions):
    """Contribution scores C(s->l): heatmaps, a table of every kind, metrics.

    Example: vit-clt contributions --clt out/clt --data digits --out out/contributions
    """

    tokens: Tokens | None = None
    """Rows to score; default: CLS above patches."""

    def run(self) -> None:
        """Score, draw, and report."""
        import pandas as pd

        from vit_clt.analysis import contribution_moments, score
        from vit_clt.analysis.contributions import ALL_SCORES, ScoreKind
        from vit_clt.analysis.figures import ROW_NAMES, contribution_figure
        from vit_clt.metrics import Metric, metrics_json
        from vit_clt.outputs import OutputFolder

        folder = OutputFolder(self.out, FILES, self.overwrite)
        vit, clt, data = self.load_all(self.device)
        moments = contribution_moments(vit, clt, data, progress=True)
        shown: list[Tokens] = [self.tokens] if self.tokens else ["cls", "patch"]
        # centred scores compare images: one image has none
        kinds: list[ScoreKind] = ["projection", "centred"] if len(data) > 1 else ["projection"]
        tables = []
        for tokens in shown:
            for kind, reduce in ALL_SCORES:
                if kind == "centred" and len(data) == 1:
                    continue
                scores = score(moments, tokens=tokens, kind=kind, reduce=reduce)
                tables.append(
                    scores.to_frame().assign(
                        tokens=tokens, kind=kind, reduce=reduce, l0=scores.l0, n=len(data)
                    )
                )
        grid = [[score(moments, tokens=t, kind=kind) for kind in kinds] for t in shown]
        last = vit.cfg.n_layers - 1
        metrics = [
            Metric(f"{s.kind}_{s.tokens}_{source}_to_{last}", value, "fraction", len(data))
            for row in grid
            for s in row
            for source, value in enumerate(s.matrix[-1].tolist())
        ]
        folder.open()
        figure = contribution_figure(grid)
        page = figure.to_html(include_plotlyjs=True, div_id="contributions")
        folder.write("contributions.html", page)
        folder.write("contributions.csv", pd.concat(tables).to_csv(index=False))
        context = {
            "command": "contributions",
            "data": data.name,
            "split": data.split,
            "tokens": " ".join(shown),
            "trajectory": "teacher",
            "l0": {row[0].tokens: row[0].l0 for row in grid},
            "seed": self.seed,
            "excluded_rows": int(sum(s.excluded.sum() for row in grid for s in row)),
        }
        folder.write("metrics.json", metrics_json(metrics, **context))

        print(f"shares of the last layer's reconstruction, {data.name}, N = {len(data)}")
        rows = [
            (f"{ROW_NAMES[s.tokens]}, {s.kind}", *(f"{v:.3f}" for v in s.matrix[-1].tolist()))
            for row in grid
            for s in row
        ]
        print_table(["source layer", *map(str, range(last + 1))], rows)
        print(
            "C(s->l) says from which depth y_l can be sparsely read, not what MLP_s contributed.\n"
            f"written to {folder.path}"
        )
