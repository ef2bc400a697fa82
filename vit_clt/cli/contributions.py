"""`vit-clt contributions`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import ScoreKind, TokenKind
from vit_clt.cli.command import GroupOptions, SeedOptions, StudyOptions
from vit_clt.cli.options import CompareOptions


@dataclass(kw_only=True)
class Contributions(CompareOptions, StudyOptions, GroupOptions, SeedOptions):
    """Contribution scores C(s->l): heatmaps, a table of every kind, metrics.

    --compare adds difference.html and its tables: the scores of --clt minus those of each other
    CLT.

    Example: vit-clt contributions --clt out/demo/clt --data digits --out out/contributions
    """

    tokens: TokenKind | None = None
    """Token rows that are scored; default: the figure shows CLS rows above patch rows."""
    kind: tuple[ScoreKind, ...] = (
        "projection",
        "centred",
    )
    """Kinds of score in the figure, one or several; the CSV file holds every kind."""
    label: str | None = None
    """Score only the images of this class: its name, a part of the name that is in no other, or its
    number. Means are still those of all images."""
    image: int | None = None
    """Score only the image with this number. Means are still those of all images."""

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
            tokens=[self.tokens] if self.tokens else None,
            kinds=self.kind,
            label=self.label,
            image=self.image,
            max_groups=self.max_groups,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, study, "contributions")
