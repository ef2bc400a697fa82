"""`vit-clt reconstruct`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.cli.options import CLTOptions, SeedOptions, StudyOptions, print_table


@dataclass(kw_only=True)
class Reconstruct(CLTOptions, StudyOptions, SeedOptions):
    """Reconstruction per layer and token kind: R^2, cosine, MSE, L0, dead features.

    Example: vit-clt reconstruct --clt out/clt --data digits --out out/reconstruction
    """

    def run(self) -> None:
        """Measure, draw, and report."""
        import pandas as pd

        from vit_clt.analysis import reconstruction
        from vit_clt.analysis.exports import write_study
        from vit_clt.analysis.reconstruction_figure import reconstruction_figure
        from vit_clt.metrics import Metric, metrics_json

        folder = self.study_folder("reconstruction")
        vit, clt, data = self.load_all(self.device)
        result = reconstruction(vit, clt, data, progress=True)
        metrics = [
            Metric(
                f"{column}_{row.tokens}_layer_{row.layer}", getattr(row, column), unit, row.n_images
            )
            for row in result.frame.itertuples()
            for column, unit in (
                ("r2", "fraction"),
                ("r2_position", "fraction"),
                ("cosine", "fraction"),
                ("mse", "raw^2"),
            )
        ]
        folder.open()
        wide = result.frame.pivot(
            index="layer", columns="tokens", values=["r2", "r2_position", "cosine"]
        )
        columns = (
            ("r2", "cls"),
            ("r2", "patch"),
            ("r2_position", "patch"),
            ("cosine", "cls"),
            ("cosine", "patch"),
        )
        rows = [(l, *(f"{wide[c][t][l]:.3f}" for c, t in columns)) for l in wide.index]
        l0 = result.mean("all", "l0")
        shown = pd.DataFrame(
            rows,
            columns=["layer", "R2 CLS", "R2 patch", "R2 patch by position", "cos CLS", "cos patch"],
        )
        caption = f"{data.name}, N = {len(data)}, teacher trajectory, L0 {l0:.1f}"
        figure = reconstruction_figure(result)
        write_study(
            folder, "reconstruction", figure, result.frame, caption, shown=shown, png=self.png
        )
        context = {
            "command": "reconstruct",
            "data": data.name,
            "split": data.split,
            "tokens": "cls patch all",
            "trajectory": "teacher",
            "l0": l0,
            "seed": self.seed,
        }
        folder.write("metrics.json", metrics_json(metrics, **context))
        print(caption)
        print_table(shown)
        print(f"written to {folder.path}")
