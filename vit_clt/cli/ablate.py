"""`vit-clt ablate`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_clt.choices import Fill, Ranking, ScoreKind, TokenKind
from vit_clt.cli.command import GroupOptions, SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.layers import layer_numbers
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import contribution_work, fit_work, term_work
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.analysis.ablations.term_sets import Targets


@dataclass(kw_only=True)
class Ablate(ReadoutOptions, CLTOptions, StudyOptions, GroupOptions, SeedOptions):
    """Keep or drop source layers of one or several layers' reconstructions: accuracy and loss.

    Example: vit-clt ablate --clt out/demo/clt --data digits --rankings projection last random
    --fill mean --out out/ablation
    """

    tokens: TokenKind = "cls"
    """Token rows of the target that are overwritten."""
    target: str = "-1"
    """Layer whose MLP output is overwritten (-1 is the last), or several at once: 4,7-11 or all."""
    fill: Fill = "zero"
    """What stands in for a dropped term."""
    kind: ScoreKind = "projection"
    """Score that ranks the sources."""
    rankings: tuple[Ranking, ...] = ()
    """Orders in which sources are kept or dropped: a kind of score (highest first), last (deepest
    first), bottom (lowest score first) or random; default: --kind alone."""
    draws: int = 5
    """Number of random orders."""
    sources: str | None = None
    """A set of source layers, e.g. 8,9,11, that is kept and dropped in addition to the curves."""

    def check(self) -> None:
        """Refuse targets and sources that the CLT has not."""
        target = _target(self.target)
        sources = [] if self.sources is None else layer_numbers(self.sources, "sources")
        if target != "all":
            self.check_layers("target", [target] if isinstance(target, int) else [*target])
        self.check_layers("sources", sources)
        super().check()

    def work(self, of: Scope) -> Work:
        """Scores for the ranking, and all sets of kept terms from terms that are kept."""
        from vit_clt.analysis.ablations.term_sets import target_list

        targets = target_list(_target(self.target), of.layers)
        orders = sum(self.draws if r == "random" else 1 for r in self.rankings or (self.kind,))
        # 0 to all sources of each order, kept and dropped, and five references
        sets = orders * 2 * (max(targets) + 2) + 5
        n, room = of.images, self.kept_bytes
        scores = contribution_work(of, n, room)
        return fit_work(of) + scores + term_work(of, n, self.tokens, targets, sets, room)

    def run(self) -> None:
        """Ablate, draw, and report."""
        from vit_clt.analysis import ablation_curves
        from vit_clt.analysis.ablations.curves import AblationCurves

        folder = self.folder_of(AblationCurves)
        target = _target(self.target)
        sources = None if self.sources is None else layer_numbers(self.sources, "sources")
        vit, clt, data = self.load_all(self.device)
        self.tell(vit, data, [clt])
        fits = measured_fits(vit, {self.clt: clt}, data)
        curves = ablation_curves(
            vit,
            clt,
            data,
            self.classifier(vit, data, self.seed),
            scores=self.kind,
            rankings=self.rankings or None,
            sources=sources,
            draws=self.draws,
            target=target,
            tokens=self.tokens,
            fill=self.fill,
            max_groups=self.max_groups,
            kept_bytes=self.kept_bytes,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, curves, "ablate", fits=fits)


def _target(text: str) -> Targets:
    if text == "all":
        return "all"
    if re.fullmatch(r"-\d{1,3}", text, re.ASCII):
        return int(text)
    return layer_numbers(text, "target")
