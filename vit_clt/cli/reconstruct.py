"""`vit-clt reconstruct`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.options import CompareOptions


@dataclass(kw_only=True)
class Reconstruct(CompareOptions, StudyOptions, SeedOptions):
    """Reconstruction per layer and token kind: R^2, cosine, MSE, L0, dead features.

    Example: vit-clt reconstruct --clt out/demo/clt --data digits --out out/reconstruction
    """

    interventions: bool = False
    """Measure on passes in which outputs of some MLPs are overwritten, as in training with
    --interventions."""

    def run(self) -> None:
        """Measure, and report."""
        from vit_clt.analysis.fit.reconstruction_study import Reconstruction, reconstructions

        folder = self.folder_of(Reconstruction)
        vit, clts, data = self.load_compared(self.device)
        fits = measured_fits(vit, dict(clts), data)
        result = reconstructions(
            vit, dict(clts), data, interventions=self.interventions, seed=self.seed, progress=True
        )
        self.report(folder, result, "reconstruct", fits=fits)
