"""`vit-clt claims`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import TokenKind
from vit_clt.cli.command import MemoryOptions, SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import claims_work, fit_work
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class Claims(ReadoutOptions, CLTOptions, StudyOptions, MemoryOptions, SeedOptions):
    """What a CLT's scores claim and whether it holds: C reads, E acts, beside the ViT's own MLPs.

    Scores are of one half of the images and tested on the other. `vit-clt audit` includes this.

    Example: vit-clt claims --clt out/demo/clt --data digits --out out/claims
    """

    tokens: TokenKind = "cls"
    """Token rows that are scored, and overwritten at the target."""
    target: int = -1
    """Layer whose highest sources are kept; -1 is the last."""
    keep: int = 4
    """Number of source layers that are kept."""

    def check(self) -> None:
        """Refuse a target that the CLT has not."""
        self.check_layers("target", [self.target])
        super().check()

    def work(self, of: Scope) -> Work:
        """Scores of one half, tested on the other; effects on at most 500 images of each."""
        return fit_work(of) + claims_work(of, self.kept_bytes)

    def run(self) -> None:
        """Score one half, test on the other, draw, and report."""
        from vit_clt.analysis import claims
        from vit_clt.analysis.auditing.claims_result import Claims as ClaimsStudy
        from vit_clt.analysis.auditing.evidence import check_question

        folder = self.folder_of(ClaimsStudy)
        vit, clt, data = self.load_all(self.device)
        check_question(vit, data, self.tokens, self.target, self.keep, "keep")
        self.tell(vit, data, [clt])
        fits = measured_fits(vit, {self.clt: clt}, data)
        study = claims(
            vit,
            clt,
            data,
            self.classifier(vit, data, self.seed),
            tokens=self.tokens,
            k=self.keep,
            target=self.target,
            name=self.clt,
            kept_bytes=self.kept_bytes,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, study, "claims", fits=fits)
