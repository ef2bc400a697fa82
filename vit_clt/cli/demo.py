"""`vit-clt demo`: the whole path on the shipped digits model, offline, in about a minute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_clt.choices import KEPT_BYTES
from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.feature_work import explore_work, gallery_work
from vit_clt.cli.options import check_device
from vit_clt.cli.study_work import reconstruction_work, term_work
from vit_clt.cli.told import told
from vit_clt.forecast.work import Scope, Work

CLT_FILES = ("clt/config.json", "clt/model.safetensors", "clt/README.md")


@dataclass(kw_only=True)
class Demo(StudyOptions, SeedOptions):
    """Train a CLT for the shipped digits model and explore it: the whole path, a minute.

    Example: vit-clt demo --out out/demo
    """

    imports = ("vit_clt.analysis.demo",)

    out: Path = Path("out/demo")
    """Output folder: absent or empty, unless --overwrite."""

    def work(self, of: Scope) -> Work:
        """The studies of the demo: the explorer, ablations with two fills, and the fit."""
        from vit_clt.analysis.demo import GRAPHS, INTERVENTIONS

        n, room = of.images, KEPT_BYTES
        explorer = explore_work(of, of.layers * of.features, GRAPHS, INTERVENTIONS, room)
        gallery = gallery_work(of, of.layers, 0, effect_images=200, named=False)
        sets = 2 * (of.layers + 1) + 5
        ablations = 2 * term_work(of, n, "cls", [of.layers - 1], sets, room)
        return explorer + gallery + ablations + reconstruction_work(of, n)

    def run(self) -> None:
        """Run the study and write its report."""
        from vit_clt.analysis.demo import DemoStudy, demo_study

        folder = self.folder_of(DemoStudy, more=CLT_FILES)
        check_device(self.device)
        self._tell_all()
        clt = folder.path / "clt"
        study = demo_study(clt_name=str(clt), seed=self.seed, device=self.device)
        study.clt.save_pretrained(folder.open().place / "clt")
        print()
        page = folder.path / "index.html"
        self.report(folder, study, "demo", f"open {page} in a browser; the CLT is in {clt}")

    def _tell_all(self) -> None:
        """Print what training and studies will take together."""
        from vit_clt.analysis.demo import demo_training
        from vit_clt.data.forms import load_data
        from vit_clt.hooks import HookedViT
        from vit_clt.training.planned import PlannedRun
        from vit_clt.transcoder.model import CrossLayerTranscoder

        vit = HookedViT.from_open_clip("digits", device=self.device)
        train, test = (load_data("digits", vit=vit, split=split) for split in ("train", "test"))
        plan = PlannedRun(vit, train, *demo_training(vit, self.seed), self.device)
        clt = CrossLayerTranscoder(plan.config).to(self.device).eval()
        studies = told(vit, [clt], test, self.work(Scope.of(vit, test, [clt])))
        print(
            studies.beside_training(plan.seconds(), sum(plan.needs().memory.values())), flush=True
        )
