"""`vit-clt keep-sets`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Fill, ScoreKind, TokenKind
from vit_clt.cli.command import GroupOptions, SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import contribution_work, fit_work, term_work
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class KeepSets(ReadoutOptions, CLTOptions, StudyOptions, GroupOptions, SeedOptions):
    """All sets of k source layers of one layer: where does the chosen one stand among them?

    Example: vit-clt keep-sets --clt out/demo/clt --data digits --k 4 --fill mean
        --out out/keep_sets
    """

    k: int = 4
    """Number of source layers in a set."""
    tokens: TokenKind = "cls"
    """Token rows of the target that are overwritten."""
    target: int = -1
    """Layer whose MLP output is overwritten; -1 is the last."""
    fill: Fill = "zero"
    """What stands in for a dropped term."""
    kind: ScoreKind = "projection"
    """Kind of score whose k highest sources are the chosen set."""

    def check(self) -> None:
        """Refuse a target that the CLT has not."""
        self.check_layers("target", [self.target])
        super().check()

    def work(self, of: Scope) -> Work:
        """Scores for the ranking, and every set of k sources from terms that are kept."""
        from math import comb

        from vit_clt.analysis.ablations.all_sets import MAX_SETS

        target = self.target % of.layers
        sets = min(MAX_SETS, comb(target + 1, self.k))
        scores = contribution_work(of, of.images, self.kept_bytes)
        return (
            fit_work(of)
            + scores
            + term_work(of, of.images, self.tokens, [target], sets, self.kept_bytes)
        )

    def run(self) -> None:
        """Read every set, draw, and report."""
        from vit_clt.analysis import keep_sets
        from vit_clt.analysis.ablations.all_sets_result import KeepSets as AllSets

        folder = self.folder_of(AllSets)
        vit, clt, data = self.load_all(self.device)
        self.tell(vit, data, [clt])
        fits = measured_fits(vit, {self.clt: clt}, data)
        result = keep_sets(
            vit,
            clt,
            data,
            self.classifier(vit, data, self.seed),
            k=self.k,
            scores=self.kind,
            target=self.target,
            tokens=self.tokens,
            fill=self.fill,
            max_groups=self.max_groups,
            kept_bytes=self.kept_bytes,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, result, "keep-sets", fits=fits)
