"""`vit-clt faithfulness`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Inputs, Templates, TokenKind
from vit_clt.cli.options import (
    CLTOptions,
    SeedOptions,
    StudyOptions,
    layer_numbers,
    print_table,
)


@dataclass(kw_only=True)
class Faithfulness(CLTOptions, StudyOptions, SeedOptions):
    """How closely the ViT with the CLT in its MLPs' place answers as the ViT does, and floors.

    Example: vit-clt faithfulness --clt out/clt --data digits --layers 4-7 --out out/faithfulness
    """

    layers: str | None = None
    """Layers replaced: one, or an inclusive range such as 7-11. Default: all."""
    tokens: TokenKind = "cls"
    """Rows replaced."""
    inputs: Inputs = "stream"
    """Where codes come from: the live, altered stream, or a clean pass."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates. Prompt sensitivity always
    compares the 18."""

    def run(self) -> None:
        """Compare, draw, and report."""
        from vit_clt.analysis import surrogate_faithfulness
        from vit_clt.analysis.fit.faithfulness_figure import faithfulness_report, measure_table
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.metrics import metrics_json
        from vit_clt.zero_shot import ZeroShot

        folder = self.study_folder("faithfulness")
        layers = None if self.layers is None else layer_numbers(self.layers)
        vit, clt, data = self.load_all(self.device)
        zs = ZeroShot(vit, data.class_names, self.templates)
        result = surrogate_faithfulness(
            vit,
            clt,
            data,
            zs,
            layers=layers,
            tokens=self.tokens,
            inputs=self.inputs,
            seed=self.seed,
            progress=True,
        )
        folder.open()
        shown = measure_table(result)
        caption = (
            f"{data.name}, N = {result.n} (similarities of {result.n_of('spearman')}), "
            f"{self.tokens} rows of layers {result.layer_range}, {self.inputs} inputs, templates: "
            f"{self.templates}, L0 {result.l0:.1f}"
        )
        write_study(
            folder,
            "faithfulness",
            result.figure(),
            result.to_frame(),
            caption,
            shown=shown,
            page=faithfulness_report(result),
            png=self.png,
        )
        context = {
            "command": "faithfulness",
            "data": data.name,
            "split": data.split,
            "tokens": self.tokens,
            "trajectory": self.inputs,
            "l0": result.l0,
            "seed": self.seed,
            "layers": result.layers,
            "templates": self.templates,
            "prompt_templates": result.by_template["template"].tolist(),
            "no_op": result.no_op,
        }
        folder.write("metrics.json", metrics_json(result.metrics(), **context))
        print(caption)
        print_table(shown)
        print("in brackets 95 % bootstrap intervals over images")
        if result.no_op:
            print("these rows cannot reach the output: a no-op")
        print(f"written to {folder.path}")
