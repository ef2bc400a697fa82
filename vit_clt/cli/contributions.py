"""`vit-clt contributions`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.cli.options import CLTOptions, SeedOptions, StudyOptions, Tokens, print_table


@dataclass(kw_only=True)
class Contributions(CLTOptions, StudyOptions, SeedOptions):
    """Contribution scores C(s->l): heatmaps, a table of every kind, metrics.

    Example: vit-clt contributions --clt out/clt --data digits --out out/contributions
    """

    tokens: Tokens | None = None
    """Rows to score; default: CLS above patches."""

    def run(self) -> None:
        """Score, draw, and report."""
        import pandas as pd

        from vit_clt.analysis import contribution_moments, score
        from vit_clt.analysis.contribution_figure import contribution_figure
        from vit_clt.analysis.contributions import ALL_SCORES, ScoreKind
        from vit_clt.analysis.exports import write_study
        from vit_clt.analysis.figures import ROW_NAMES
        from vit_clt.metrics import Metric, metrics_json

        folder = self.study_folder("contributions")
        vit, clt, data = self.load_all(self.device)
        moments = contribution_moments(vit, clt, data, progress=True)
        shown_tokens: list[Tokens] = [self.tokens] if self.tokens else ["cls", "patch"]
        # centred scores compare images: one image has none
        kinds: list[ScoreKind] = ["projection", "centred"] if len(data) > 1 else ["projection"]
        tables = []
        for tokens in shown_tokens:
            for kind, reduce in ALL_SCORES:
                if kind == "centred" and len(data) == 1:
                    continue
                scores = score(moments, tokens=tokens, kind=kind, reduce=reduce)
                tables.append(
                    scores.to_frame().assign(
                        tokens=tokens, kind=kind, reduce=reduce, l0=scores.l0, n=len(data)
                    )
                )
        grid = [[score(moments, tokens=t, kind=kind) for kind in kinds] for t in shown_tokens]
        last = vit.cfg.n_layers - 1
        metrics = [
            Metric(f"{s.kind}_{s.tokens}_{source}_to_{last}", value, "fraction", len(data))
            for row in grid
            for s in row
            for source, value in enumerate(s.matrix[-1].tolist())
        ]
        folder.open()
        rows = [
            (f"{ROW_NAMES[s.tokens]}, {s.kind}", *(f"{v:.3f}" for v in s.matrix[-1].tolist()))
            for row in grid
            for s in row
        ]
        shown = pd.DataFrame(rows, columns=["source layer", *map(str, range(last + 1))])
        caption = (
            f"shares of the last layer's reconstruction, {data.name}, N = {len(data)}, teacher "
            f"trajectory, L0 {grid[0][0].l0:.1f} ({ROW_NAMES[shown_tokens[0]]})"
        )
        write_study(
            folder,
            "contributions",
            contribution_figure(grid),
            pd.concat(tables),
            caption,
            shown=shown,
            png=self.png,
        )
        context = {
            "command": "contributions",
            "data": data.name,
            "split": data.split,
            "tokens": " ".join(shown_tokens),
            "trajectory": "teacher",
            "l0": {row[0].tokens: row[0].l0 for row in grid},
            "seed": self.seed,
            "excluded_rows": int(sum(s.excluded.sum() for row in grid for s in row)),
        }
        folder.write("metrics.json", metrics_json(metrics, **context))

        print(caption)
        print_table(shown)
        print(
            "C(s->l) says from which depth y_l can be sparsely read, not what MLP_s contributed.\n"
            f"written to {folder.path}"
        )
