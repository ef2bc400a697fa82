"""`vit-clt heads`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Fill
from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.feature_work import taken_apart_work
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import PromptOptions
from vit_clt.cli.study_work import fit_work, head_work
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class Heads(PromptOptions, CLTOptions, StudyOptions, SeedOptions):
    """What does each attention head add to the answer, which features does it carry there?

    The label's logit, less the mean of all classes, is taken apart by head and MLP, and every head
    is ablated as a check.

    Example: vit-clt heads --clt out/demo/clt --data digits --sample 100 --out out/heads
    """

    sample: int = 200
    """Number of images studied, drawn at random from those of --data; all, if there are fewer."""
    fill: Fill = "mean"
    """What is written over a head that is ablated: zeros (zero), the mean over the images (mean),
    or what another image has there (resample)."""
    strongest: int = 6
    """Number of heads, those of largest direct terms beyond the floor, whose features are named."""
    drawn: int = 3
    """Number of images on which the rows that these heads read are shown."""

    def work(self, of: Scope) -> Work:
        """Passes for each head of the images that are sampled, and their frozen passes."""
        n = min(self.sample, of.images)
        return fit_work(of) + head_work(of, n) + taken_apart_work(of, n)

    def run(self) -> None:
        """Take the logits apart, ablate every head, and report."""
        from vit_clt.analysis import head_study
        from vit_clt.analysis.causal.head_result import HeadAblations
        from vit_clt.analysis.heads.result import HeadStudy

        folder = self.folder_of(HeadStudy, HeadAblations)
        vit, clt, data = self.load_all(self.device)
        self.tell(vit, data, [clt])
        fits = measured_fits(vit, {self.clt: clt}, data)
        study = head_study(
            vit,
            clt,
            data,
            self.zero_shot(vit, data),
            sample=self.sample,
            fill=self.fill,
            strongest=self.strongest,
            drawn=self.drawn,
            clt_name=self.clt,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, study, "heads", fits=fits)
