"""`vit-clt contributions`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from vit_clt.choices import EffectOrder, EffectPath, Fill, ScoreKind, TokenKind
from vit_clt.cli.command import GroupOptions, SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.options import CompareOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import contribution_work, effect_work, fit_work
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.analysis.silencing.scores import EffectScores
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.readouts.base import Classifier
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class Contributions(ReadoutOptions, CompareOptions, StudyOptions, GroupOptions, SeedOptions):
    """Contribution scores C(s->l): heatmaps, a table of every kind, metrics.

    --compare adds difference.html and its tables: the scores of --clt minus those of each other
    CLT. --kind effect adds E(s->l), what silencing the features of s changes.

    Example: vit-clt contributions --clt out/demo/clt --data digits --out out/contributions
    """

    tokens: TokenKind | None = None
    """Token rows that are scored; default: the figure shows CLS rows above patch rows."""
    kind: tuple[ScoreKind, ...] = (
        "projection",
        "centred",
    )
    """Kinds of score in the figure, one or several; the CSV file holds every kind, but effects only
    if they are named here."""
    label: str | None = None
    """Score only the images of this class: its name, a part of the name that is in no other, or its
    number. Means are still those of all images."""
    image: int | None = None
    """Score only the image with this number. Means are still those of all images."""

    path: EffectPath = "total"
    """Of effects: whether the codes of later layers answer to it, or are held."""
    fill: Fill = "mean"
    """Of effects: what silenced codes are set to."""
    ablated: TokenKind = "all"
    """Of effects: token rows on which codes are silenced."""
    order: EffectOrder = "exact"
    """Of effects: an altered pass for each source, or to first order from gradients, with its error
    on 64 of the images."""

    def check(self) -> None:
        """Refuse options of effects where no effects are asked for, and a choice of images of them.

        Raises:
            InputError: such an option is given.
        """
        if "effect" in self.kind:
            for name in ("label", "image"):
                if getattr(self, name) is not None:
                    raise InputError(name, "is given with effects; expected all images.")
        else:
            for field in fields(self):
                if field.name in _OF_EFFECTS and getattr(self, field.name) != field.default:
                    raise InputError(
                        field.name, "is given without effects; expected --kind effect."
                    )
        super().check()

    def work(self, of: Scope) -> Work:
        """Two passes for scores, one of them from kept codes, and effects for each kind of rows."""
        n = of.images
        work = fit_work(of) + contribution_work(of, n, self.kept_bytes)
        if "effect" in self.kind:
            kinds = 1 if self.tokens else len(of.kinds) - 1  # "all" is none of its own
            direct, first = self.path == "direct", self.order == "first"
            effects = effect_work(of, n, first_order=first, direct=direct)
            work += of.clts * kinds * effects
        return work

    def run(self) -> None:
        """Score, draw, and report."""
        from vit_clt.analysis.contributions.difference import ScoreDifferences
        from vit_clt.analysis.contributions.study import ScoreStudy, score_study

        folder = self.folder_of(ScoreStudy, *([ScoreDifferences] if self.compare else []))
        vit, clts, data = self.load_compared(self.device)
        self.tell(vit, data, [clt for _, clt in clts])
        fits = measured_fits(vit, dict(clts), data)
        further = {}
        if "effect" in self.kind:
            classifier = self.classifier_if_labelled(vit, data, self.seed)
            further = {name: self._effects(vit, clt, data, classifier) for name, clt in clts}
        study = score_study(
            vit,
            dict(clts),
            data,
            tokens=[self.tokens] if self.tokens else None,
            kinds=self.kind,
            label=self.label,
            image=self.image,
            max_groups=self.max_groups,
            kept_bytes=self.kept_bytes,
            seed=self.seed,
            further=further,
            progress=True,
        )
        self.report(folder, study, "contributions", fits=fits)

    def _effects(
        self,
        vit: HookedViT,
        clt: CrossLayerTranscoder,
        data: ImageData,
        classifier: Classifier | None,
    ) -> list[EffectScores]:
        """Effects of one CLT on each kind of rows; on the output too where the data have labels."""
        from vit_clt.analysis import effect_scores

        tokens = [self.tokens] if self.tokens else vit.cfg.rows.having(("cls", "patch"))
        return [
            effect_scores(
                vit,
                clt,
                data,
                classifier,
                tokens=rows,
                ablated=self.ablated,
                fill=self.fill,
                path=self.path,
                order=self.order,
                seed=self.seed,
                progress=True,
            )
            for rows in tokens
        ]


_OF_EFFECTS = {
    *("path", "fill", "ablated", "order"),
    *("readout", "templates", "train_data", "train_limit"),
}
