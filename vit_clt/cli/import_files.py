"""`vit-clt import`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from vit_clt.choices import ExportFormat
from vit_clt.cli.command import Command
from vit_clt.cli.options import VitOptions
from vit_clt.errors import InputError


@dataclass(kw_only=True)
class Import(VitOptions, Command):
    """Import a CLT from the files of another tool; the output folder is itself a --clt.

    Example: vit-clt import --from out/export --model digits --out out/imported
    """

    other_names: ClassVar = {"source": "from"}

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """Folder that holds the files."""
    format: ExportFormat = "circuit-tracer"
    """Format of the files, named after the tool that wrote them."""
    model: str | None = None
    """ViT that the CLT was trained on, to be recorded with it: an open_clip name, local-dir:PATH,
    digits or adding. By default none is recorded, and the CLT attaches to any ViT of its shape."""

    def known_model(self) -> str | None:
        """--model, as no ViT is loaded without it."""
        return self.model

    def check(self) -> None:
        """Refuse files that are not there, and weights of no ViT."""
        if self.pretrained is not None and self.model is None:
            raise InputError(
                "pretrained", f"is {self.pretrained} without a model; expected both, or neither."
            )
        if not self.source.is_dir():
            raise InputError("source", f"is {self.source}; expected a folder holding config.yaml.")
        super().check()

    def run(self) -> None:
        """Read, check, and write."""
        from vit_clt.interchange.circuit_tracer import import_circuit_tracer
        from vit_clt.metrics import Metric, metrics_json
        from vit_clt.outputs import OutputFolder
        from vit_clt.transcoder.checkpoints import CARD_FILE
        from vit_clt.transcoder.saved_files import CONFIG_FILE, WEIGHTS_FILE

        files = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, "metrics.json"]
        folder = OutputFolder(self.out, files, self.overwrite, command=self.command_name())
        vit = None if self.model is None else self.load_vit(self.device)
        clt = import_circuit_tracer(self.source, vit=vit, progress=True)
        config = clt.config
        folder.open()
        clt.save_pretrained(folder.place)
        parameters = Metric("parameters", config.n_parameters(), "count", 0)
        context = {"command": "import", "from": str(self.source), "model": self.model}
        folder.write("metrics.json", metrics_json([parameters], **context))
        folder.finish()
        print(
            f"{config.n_layers} layers of width {config.d_model}, {config.n_features} features a "
            f"layer, jumprelu; {'no teacher recorded' if vit is None else f'teacher {self.model}'}"
        )
        print(f"written to {folder.path}")
