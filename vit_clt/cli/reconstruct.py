"""`vit-clt reconstruct`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.options import CompareOptions
from vit_clt.cli.study_work import fit_work, reconstruction_work
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class Reconstruct(CompareOptions, StudyOptions, SeedOptions):
    """Reconstruction per layer and token kind: R^2, cosine, MSE, L0, dead features.

    Example: vit-clt reconstruct --clt out/demo/clt --data digits --out out/reconstruction
    """

    interventions: bool = False
    """Measure on passes in which outputs of some MLPs are overwritten, as in training with
    --interventions."""

    def work(self, of: Scope) -> Work:
        """Two passes, with --interventions each twice."""
        # altered passes run beside clean ones
        more = Work({"pass": 2 * of.images}) if self.interventions else Work()
        return fit_work(of) + reconstruction_work(of, of.images) + more

    def run(self) -> None:
        """Measure, and report."""
        from vit_clt.analysis.fit.reconstruction_study import Reconstruction, reconstructions

        folder = self.folder_of(Reconstruction)
        vit, clts, data = self.load_compared(self.device)
        self.tell(vit, data, [clt for _, clt in clts])
        fits = measured_fits(vit, dict(clts), data)
        result = reconstructions(
            vit, dict(clts), data, interventions=self.interventions, seed=self.seed, progress=True
        )
        self.report(folder, result, "reconstruct", fits=fits)
