"""`vit-clt demo`: the whole path on the shipped digits model, offline, in under two minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_clt.cli.options import Command, SeedOptions, check_device, print_table

FILES = (
    "report.html",
    "metrics.json",
    "clt/config.json",
    "clt/model.safetensors",
    "clt/README.md",
)


@dataclass(kw_only=True)
class Demo(Command, SeedOptions):
    """Train a CLT for the shipped digits model, replace its MLPs, attribute, ablate, report.

    Example: vit-clt demo --out out/demo
    """

    imports = ("vit_clt.analysis.demo",)

    out: Path = Path("out/demo")
    """Output folder: absent or empty, unless --overwrite."""

    def run(self) -> None:
        """Run the study and write its report."""
        import pandas as pd

        from vit_clt.analysis.demo import demo_study
        from vit_clt.analysis.reporting.style import ROW_NAMES
        from vit_clt.metrics import metrics_json
        from vit_clt.outputs import OutputFolder

        folder = OutputFolder(self.out, FILES, self.overwrite)
        check_device(self.device)
        study = demo_study(seed=self.seed, device=self.device)
        folder.open()
        study.clt.save_pretrained(folder.path / "clt")
        folder.write("report.html", study.report())
        facts = study.facts()
        folder.write(
            "metrics.json", metrics_json(study.metrics(), command="demo", **facts.context())
        )

        print(f"\n{facts.data}, N = {facts.n}; all layers replaced, stream inputs")
        rows = []
        for r in study.cascade.to_frame().itertuples():
            cells = (r.top1, r.baseline, r.floor_mean, r.floor_zero)
            losses = (r.loss, r.loss_baseline, r.loss_floor_mean, r.loss_floor_zero)
            rows.append(
                (
                    ROW_NAMES[r.tokens],
                    *(f"{100 * c:.1f} / {x:.3f}" for c, x in zip(cells, losses, strict=True)),
                )
            )
        headers = ["with the CLT", "unaltered", "MLPs at mean", "MLPs at zero"]
        print_table(pd.DataFrame(rows, columns=["top-1 % / loss (nats)", *headers]))
        print(
            f"R2, mean over layers: patches {study.reconstruction.mean('patch'):.3f}, "
            f"CLS {study.reconstruction.mean('cls'):.3f} (0 is the mean; patches "
            f"{study.reconstruction.mean('patch', 'r2_position'):.3f} if each position's); "
            f"L0 {study.reconstruction.mean('all', 'l0'):.1f}; {study.seconds:.0f} s"
        )
        print(f"open {folder.path / 'report.html'}")
