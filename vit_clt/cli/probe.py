"""`vit-clt probe`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vit_clt.cli.options import (
    ModelOptions,
    SeedOptions,
    StudyOptions,
    check_held_out,
    layer_numbers,
    print_table,
)


@dataclass(kw_only=True)
class Probe(ModelOptions, StudyOptions, SeedOptions):
    """At which depth can the class, or what else is known of an image, be read linearly?

    Example: vit-clt probe --model adding --out out/probe
    """

    limit: int | None = 2000
    """First N rows only."""
    train_data: str | None = None
    """Images probes are fitted on, a form as in --data; default: the train split of --data."""
    train_limit: int | None = 4000
    """First N of them only."""
    factors: tuple[str, ...] = ()
    """What is read: label, or a factor that the data knows (adding: left, right). Default: all."""
    layers: str | None = None
    """Layers, e.g. 4-7 or 0,3-5 (inclusive); default: every layer."""

    def run(self) -> None:
        """Fit, read, draw, and report."""
        from vit_clt.analysis import probes
        from vit_clt.analysis.probing.figure import probe_context, probe_report, probe_table
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.metrics import metrics_json

        folder = self.study_folder("probe")
        layers = None if self.layers is None else layer_numbers(self.layers)
        vit = self.load_vit(self.device)
        data = self.load_images(vit)
        source = replace(
            self, data=self.train_data or self.data, limit=self.train_limit, split=None
        )
        train = source.load_images(vit, "train")
        check_held_out(train, data)
        result = probes(
            vit,
            train,
            data,
            factors=self.factors or None,
            layers=layers,
            seed=self.seed,
            progress=True,
        )
        folder.open()
        shown = probe_table(result)
        caption = f"{probe_context(result)}; accuracy % / cross-entropy (nats)"
        write_study(
            folder,
            "probe",
            result.figure(),
            result.to_frame(),
            caption,
            shown=shown,
            page=probe_report(result),
            png=self.png,
        )
        context = {
            "command": "probe",
            "data": data.name,
            "split": data.split,
            "tokens": "cls, patch",
            "trajectory": "teacher",
            "seed": self.seed,
            "model": vit.cfg.model,
            "train_data": train.name,
            "n_train": result.n_train,
            "factors": list(result.floors),
            "layers": result.layers,
        }
        folder.write("metrics.json", metrics_json(result.metrics(), **context))
        print(caption)
        along = shown["place"].str.contains("chance|additive|resid_pre|resid_post")
        print_table(shown[along][["place", *result.floors]])
        print(f"written to {folder.path}")
