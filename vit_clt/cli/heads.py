"""`vit-clt heads`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Fill
from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import PromptOptions


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

    def run(self) -> None:
        """Take the logits apart, ablate every head, and report."""
        from vit_clt.analysis import head_study
        from vit_clt.analysis.causal.head_result import HeadAblations
        from vit_clt.analysis.heads.result import HeadStudy

        folder = self.folder_of(HeadStudy, HeadAblations)
        vit, clt, data = self.load_all(self.device)
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
