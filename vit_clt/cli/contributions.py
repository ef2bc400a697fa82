"""`vit-clt contributions`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import ScoreKind, TokenKind
from vit_clt.cli.options import CompareOptions, SeedOptions, StudyOptions


@dataclass(kw_only=True)
class Contributions(CompareOptions, StudyOptions, SeedOptions):
    """Contribution scores C(s->l): heatmaps, a table of every kind, metrics.

    With --compare also difference.html and its tables: --clt less each of the others.

    Example: vit-clt contributions --clt out/clt --data digits --out out/contributions
    """

    tokens: TokenKind | None = None
    """Rows to score; default: CLS above patches."""
    kind: tuple[ScoreKind, ...] = (
        "projection",
        "centred",
    )
    """Scores drawn, one or several; the CSV holds every kind."""
    label: str | None = None
    """Score the images of this class alone: its name, a part that no other name holds, or its
    number; means stay those of all images."""
    image: int | None = None
    """Score this image alone (its row); means stay those of all images."""

    def run(self) -> None:
        """Score, draw, and report."""
        from vit_clt.analysis.contributions.difference import ScoreDifferences
        from vit_clt.analysis.contributions.study import ScoreStudy, score_study

        folder = self.folder_of(ScoreStudy, *([ScoreDifferences] if self.compare else []))
        vit, clts, data = self.load_compared(self.device)
        study = score_study(
            vit,
            dict(clts),
            data,
            tokens=[self.tokens] if self.tokens else ["cls", "patch"],
            kinds=self.kind,
            label=self.label,
            image=self.image,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, study, "contributions")
