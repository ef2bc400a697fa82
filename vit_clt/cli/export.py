"""`vit-clt export`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vit_clt.choices import ExportFormat
from vit_clt.cli.command import Command, MemoryOptions, SeedOptions
from vit_clt.cli.options import CLTOptions, load_clt
from vit_clt.cli.printed_table import print_table
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import threshold_work
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.analysis.fit.threshold_study import ThresholdCost
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class Export(ReadoutOptions, CLTOptions, Command, MemoryOptions, SeedOptions):
    """Export a CLT to files of another tool; ReLU-TopK gets thresholds, whose cost is measured.

    Thresholds are fitted on --train-data and measured on --data.

    Example: vit-clt export --clt out/demo/clt --format circuit-tracer --data digits
        --out out/export
    """

    trains = True

    format: ExportFormat = "circuit-tracer"
    """Format of the files, named after the tool that reads them."""

    def known_model(self) -> str | None:
        """--model alone: a CLT with thresholds is exported without its ViT."""
        return self.model

    def work(self, of: Scope) -> Work:
        """Two passes to fit thresholds; fit and replaced passes with them and without."""
        return threshold_work(of, self.kept_bytes)

    def run(self) -> None:
        """Fit and measure where that is needed, write, and report."""
        from vit_clt.interchange.circuit_tracer import check_exportable, export_circuit_tracer
        from vit_clt.interchange.files import circuit_tracer_files
        from vit_clt.metrics import Metric, metrics_json
        from vit_clt.outputs import OutputFolder

        clt = load_clt(self.clt, self.device)
        check_exportable(clt.config)
        files = [*circuit_tracer_files(clt.config.n_layers), "metrics.json"]
        folder = OutputFolder(self.out, files, self.overwrite, command=self.command_name())
        metrics = [Metric("parameters", sum(p.numel() for p in clt.parameters()), "count", 0)]
        context: dict[str, Any] = {"seed": self.seed}
        name = clt.config.sparsifier.name
        if clt.thresholds() is not None:
            self._check_nothing_fitted(name)
            print(f"{name}: weights and thresholds pass unchanged, nothing is fitted")
        else:
            clt, cost = self._fitted(clt)
            metrics += cost.metrics()
            context = cost.facts().context()
            if self.warnings():
                context["teacher"] = " ".join(self.warnings())
            print(" ".join([cost.caption(), *self.warnings()]))
            print_table(cost.shown())
        folder.open()
        export_circuit_tracer(clt, folder.place, progress=True)
        folder.write(
            "metrics.json", metrics_json(metrics, command="export", clt=self.clt, **context)
        )
        folder.finish()
        print(f"written to {folder.path}")

    def _check_nothing_fitted(self, sparsifier: str) -> None:
        """Refuse options of the fit and its measurement, which would have no effect."""
        in_use = {"clt", "format", "seed", *(field.name for field in fields(Command))}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in in_use and value != field.default:
                raise InputError(
                    field.name,
                    f"is {value}; thresholds of a {sparsifier} CLT are its own, nothing is fitted "
                    "or measured: expected none.",
                )

    def _fitted(self, clt: CrossLayerTranscoder) -> tuple[CrossLayerTranscoder, ThresholdCost]:
        """The CLT with fitted thresholds, and what they cost."""
        from vit_clt.analysis.fit.threshold_study import threshold_cost
        from vit_clt.interchange.thresholds import with_thresholds

        vit = self.load_teacher(clt, self.device)
        data = self.load_measured(vit)
        train = self.load_train_images(vit, data)
        classifier = self.classifier(vit, data, self.seed)
        self.tell(vit, data, [clt], train)
        twin = with_thresholds(vit, clt, train, kept_bytes=self.kept_bytes, progress=True)
        fitted_on = f"{train.name}, {len(train)} images"
        cost = threshold_cost(
            vit,
            clt,
            twin,
            data,
            classifier,
            fitted_on=fitted_on,
            seed=self.seed,
            progress=True,
        )
        return twin, cost
