"""`vit-clt export`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from vit_clt.choices import ExportFormat, Templates
from vit_clt.cli.options import (
    CLTOptions,
    Command,
    SeedOptions,
    check_held_out,
    load_clt,
    print_table,
)
from vit_clt.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from vit_clt.metrics import Metric
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class Export(CLTOptions, Command, SeedOptions):
    """A CLT as another tool's files; ReLU-TopK gets thresholds, and what they cost is measured.

    Example: vit-clt export --clt out/clt --format circuit-tracer --data digits --out out/export
    """

    format: ExportFormat = "circuit-tracer"
    """Whose files."""
    train_data: str | None = None
    """Images that thresholds are fitted on, a form as in --data; default: the train split of
    --data, whose held-out split they are measured on."""
    train_limit: int | None = None
    """First N of them only."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates."""

    def run(self) -> None:
        """Fit and measure where that is needed, write, and report."""
        from vit_clt.interchange.circuit_tracer import check_exportable, export_circuit_tracer
        from vit_clt.interchange.files import circuit_tracer_files
        from vit_clt.metrics import Metric, metrics_json
        from vit_clt.outputs import OutputFolder

        clt = load_clt(self.clt, self.device)
        check_exportable(clt.config)
        files = [*circuit_tracer_files(clt.config.n_layers), "metrics.json"]
        folder = OutputFolder(self.out, files, self.overwrite)
        metrics = [Metric("parameters", sum(p.numel() for p in clt.parameters()), "count", 0)]
        context: dict[str, Any] = {"clt": self.clt, "seed": self.seed}
        name = clt.config.sparsifier.name
        if clt.thresholds() is not None:
            self._check_nothing_fitted(name)
            print(f"{name}: weights and thresholds pass unchanged, nothing is fitted")
        else:
            clt, cost, measured = self._fitted(clt)
            metrics += cost
            context |= measured
        folder.open()
        export_circuit_tracer(clt, folder.path, progress=True)
        folder.write("metrics.json", metrics_json(metrics, command="export", **context))
        print(f"written to {folder.path}")

    def _check_nothing_fitted(self, sparsifier: str) -> None:
        """Refuse options of the fit and its measurement, which would be passed over."""
        used = {"clt", "format", "seed", *(field.name for field in fields(Command))}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in used and value != field.default:
                raise InputError(
                    field.name,
                    f"is {value}; thresholds of a {sparsifier} CLT are its own, nothing is fitted "
                    "or measured: expected none.",
                )

    def _fitted(
        self, clt: CrossLayerTranscoder
    ) -> tuple[CrossLayerTranscoder, list[Metric], dict[str, Any]]:
        """The CLT with thresholds, what they cost, and the context of those numbers."""
        from vit_clt.analysis.fit.threshold_study import threshold_cost
        from vit_clt.interchange.thresholds import with_thresholds
        from vit_clt.zero_shot import ZeroShot

        vit = self.load_teacher(clt, self.device)
        data = self.load_images(vit)
        fitted_on = replace(
            self, data=self.train_data or self.data, split=None, limit=self.train_limit
        )
        train = fitted_on.load_images(vit, "train")
        check_held_out(train, data)
        zs = ZeroShot(vit, data.class_names, self.templates)
        twin = with_thresholds(vit, clt, train, progress=True)
        cost = threshold_cost(vit, clt, twin, data, zs, seed=self.seed, progress=True)
        frame = cost.frame.set_index("tokens")
        print(
            f"thresholds fitted on {train.name}, {len(train)} images; measured on {data.name}, "
            f"N = {len(data)}: L0 and R2 (means over layers, "
            "and the lowest R2 of a layer) on the teacher trajectory, top-1 % / loss (nats) with "
            f"all MLPs replaced (stream), templates: {self.templates}, seed {self.seed}"
        )
        print_table(_readable(frame))
        return (
            twin,
            cost.metrics(),
            {
                "data": data.name,
                "split": data.split,
                "tokens": "cls patch all",
                "trajectory": "stream; teacher for L0, R² and FVU",
                "l0": float(frame.loc["all", "l0_after"]),
                "l0_before": float(frame.loc["all", "l0_before"]),
                "templates": self.templates,
                "floor": "R² 0, FVU 1; all MLPs' rows at their mean over the images",
                "baseline": "the same CLT with top-k",
                "unaltered": {
                    measure: float(frame[f"{measure}_baseline"].iloc[0])
                    for measure in ("top1", "loss")
                },
                "thresholds_fitted_on": f"{train.name}, {len(train)} images",
            },
        )


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for tokens, r in frame.iterrows():
        for version, title in (("before", "top-k"), ("after", "thresholds")):
            l0, r2 = f"{r[f'l0_{version}']:.2f}", f"{r[f'r2_{version}']:.4f}"
            layer = int(r[f"lowest_r2_layer_{version}"])
            lowest = "undefined" if layer < 0 else f"{r[f'lowest_r2_{version}']:.4f} at {layer}"
            rows.append((f"{tokens} {title}", l0, r2, lowest, _reading(r, version)))
        change = f"{r['loss_change']:+.4f} [{r['loss_change_low']:+.4f}, "
        rows += [
            (f"{tokens} change in loss", "", "", "", f"{change}{r['loss_change_high']:+.4f}]"),
            (f"{tokens} floor: mean", "", "0", "0", _reading(r, "floor_mean")),
            (f"{tokens} floor: zero", "", "", "", _reading(r, "floor_zero")),
        ]
    rows.append(("unaltered", "", "", "", _reading(frame.iloc[0], "baseline")))
    return pd.DataFrame(rows, columns=["rows", "L0", "R2", "lowest R2 at layer", "top-1 % / loss"])


def _reading(row: pd.Series, version: str) -> str:
    return f"{100 * row[f'top1_{version}']:.2f} / {row[f'loss_{version}']:.4f}"
