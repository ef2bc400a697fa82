"""`vit-clt demo`: the whole path on the shipped digits model, offline, in about a minute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.options import check_device

CLT_FILES = ("clt/config.json", "clt/model.safetensors", "clt/README.md")


@dataclass(kw_only=True)
class Demo(StudyOptions, SeedOptions):
    """Train a CLT for the shipped digits model and explore it: the whole path, a minute.

    Example: vit-clt demo --out out/demo
    """

    imports = ("vit_clt.analysis.demo",)

    out: Path = Path("out/demo")
    """Output folder: absent or empty, unless --overwrite."""

    def run(self) -> None:
        """Run the study and write its report."""
        from vit_clt.analysis.demo import DemoStudy, demo_study

        folder = self.folder_of(DemoStudy, more=CLT_FILES)
        check_device(self.device)
        clt = folder.path / "clt"
        study = demo_study(clt_name=str(clt), seed=self.seed, device=self.device)
        study.clt.save_pretrained(folder.open().place / "clt")
        print()
        page = folder.path / "index.html"
        self.report(folder, study, "demo", f"open {page} in a browser; the CLT is in {clt}")
