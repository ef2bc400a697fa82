"""`vit-clt reconstruct`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.cli.options import CLTOptions, OutputOptions, SeedOptions, print_table

FILES = ("reconstruction.html", "reconstruction.csv", "metrics.json")


@dataclass(kw_only=True)
class Reconstruct(CLTOptions, OutputOptions, SeedOptions):
    """Reconstruction per layer and token kind: R^2, cosine, MSE, L0, dead features.

    Example: vit-clt reconstruct --clt out/clt --data digits --out out/reconstruction
    """

    def run(self) -> None:
        """Measure, draw, and report."""
        from vit_clt.analysis import reconstruction
        from vit_clt.analysis.figures import reconstruction_figure
        from vit_clt.metrics import Metric, metrics_json
        from vit_clt.outputs import OutputFolder

        folder = OutputFolder(self.out, FILES, self.overwrite)
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
        figure = reconstruction_figure(result)
        page = figure.to_html(include_plotlyjs=True, div_id="reconstruction")
        folder.write("reconstruction.html", page)
        folder.write("reconstruction.csv", result.frame.to_csv(index=False))
        context = {
            "command": "reconstruct",
            "data": data.name,
            "split": data.split,
            "tokens": "cls patch all",
            "trajectory": "teacher",
            "l0": result.mean("all", "l0"),
            "seed": self.seed,
        }
        folder.write("metrics.json", metrics_json(metrics, **context))
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
        print(f"{data.name}, N = {len(data)}, teacher trajectory, L0 {context['l0']:.1f}")
        print_table(
            ["layer", "R2 CLS", "R2 patch", "R2 patch by position", "cos CLS", "cos patch"], rows
        )
        print(f"written to {folder.path}")
