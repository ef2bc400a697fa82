"""`vit-clt cascade`."""

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
class Cascade(CLTOptions, StudyOptions, SeedOptions):
    """The CLT in place of layers s to the last, for every s: accuracy, loss and floors.

    Example: vit-clt cascade --clt out/clt --data digits --inputs stream teacher --out out/cascade
    """

    layers: str | None = None
    """First layers s, e.g. 7-11 or 0,4,7-11 (inclusive); default: every layer."""
    tokens: tuple[TokenKind, ...] = ("cls", "patch", "all")
    """Rows replaced, one kind or several."""
    inputs: tuple[Inputs, ...] = ("stream",)
    """Where codes come from: the live stream, an unaltered pass, or both."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates."""

    def run(self) -> None:
        """Replace, read, draw, and report."""
        import pandas as pd

        from vit_clt.analysis import cascade
        from vit_clt.analysis.fit.cascade_figure import cascade_figure
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.metrics import metrics_json
        from vit_clt.zero_shot import ZeroShot

        folder = self.study_folder("cascade")
        firsts = None if self.layers is None else layer_numbers(self.layers)
        vit, clt, data = self.load_all(self.device)
        result = cascade(
            vit,
            clt,
            data,
            ZeroShot(vit, data.class_names, self.templates),
            tokens=self.tokens,
            inputs=self.inputs,
            first_layers=firsts,
            seed=self.seed,
            progress=True,
        )
        frame = result.to_frame()
        folder.open()
        l0 = float(frame["l0"].mean())
        rows = []
        for r in frame.itertuples():
            cells = (r.top1, r.baseline, r.floor_mean, r.floor_zero)
            losses = (r.loss, r.loss_baseline, r.loss_floor_mean, r.loss_floor_zero)
            pairs = zip(cells, losses, strict=True)
            rows.append(
                (
                    f"{r.tokens} {r.first_layer}-{r.last_layer} {r.inputs}",
                    *(f"{100 * c:.2f} / {x:.4f}" for c, x in pairs),
                )
            )
        shown = pd.DataFrame(
            rows, columns=["rows, layers, inputs", "CLT", "unaltered", "at mean", "at zero"]
        )
        caption = (
            f"{data.name}, N = {len(data)}, templates: {self.templates}, L0 {l0:.1f}; "
            "top-1 % / loss (nats)"
        )
        figure = cascade_figure(result, self.templates)
        write_study(folder, "cascade", figure, frame, caption, shown=shown, png=self.png)
        context = {
            "command": "cascade",
            "data": data.name,
            "split": data.split,
            "tokens": " ".join(result.tokens),
            "trajectory": " ".join(result.inputs),
            "l0": l0,
            "seed": self.seed,
            "templates": self.templates,
            "first_layers": result.first_layers,
            "floor": "those MLP rows at their mean over the images",
        }
        folder.write("metrics.json", metrics_json(result.metrics(), **context))
        print(caption)
        print_table(shown)
        print(f"written to {folder.path}")
