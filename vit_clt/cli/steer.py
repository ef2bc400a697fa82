"""`vit-clt steer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vit_clt.choices import EditKind, TokenKind
from vit_clt.cli.command import Command, SeedOptions, StudyOptions
from vit_clt.cli.feature_work import steering_work
from vit_clt.cli.features import feature_address
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.names_options import NamesOptions
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import fit_work
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.analysis.reporting.study import Study


@dataclass(kw_only=True)
class Steer(NamesOptions, ReadoutOptions, CLTOptions, StudyOptions, SeedOptions):
    """Turn features up or down: what do class probabilities do? Or which features move a class?

    Example: vit-clt steer --clt out/demo/clt --data digits --feature 7:76 --out out/steer

    Example: vit-clt steer --clt out/demo/clt --data digits --search three --out out/search
    """

    other_names: ClassVar = {**Command.other_names, "n_random": "random"}

    feature: tuple[str, ...] = ()
    """Features to steer, as layer:feature, e.g. 7:76; several are steered together."""
    search: str | None = None
    """In place of --feature: find the features that move this class, which is given by its name, a
    part of the name that is in no other, or its number."""
    top: int = 10
    """With --search: number of features that are steered."""
    tokens: TokenKind = "all"
    """Token rows that are steered. With all, typical activations mix CLS and patch rows; for late
    layers use cls."""
    kind: EditKind = "clamp"
    """Clamp z to a multiple of its typical activation (clamp), or multiply it by a factor
    (scale)."""
    values: tuple[float, ...] = ()
    """Strengths: multiples (default: -2 -1 0 1 2 4 6) or factors (default: -1 0 1 2 4)."""
    only_active: bool = False
    """Clamp only where the feature is active."""
    query: tuple[int, ...] = ()
    """Numbers of the images of --data that are measured; default: all. Typical activations are
    always those of all images."""
    target: str | None = None
    """Class whose change is compared with random features, given as in --search; default: the class
    whose probability changes most."""
    random: int | None = None
    """Number of random features of about the same firing rate beside each feature; default: 5, or 3
    with --search."""

    def check(self) -> None:
        """Refuse options of the other of both studies, and features that the CLT has not."""
        if (self.search is None) == (not self.feature):
            state = "both are" if self.feature else "neither is"
            raise InputError(f"{state} given of --feature and --search; expected one of them.")
        if self.search is not None:
            curve_only = {
                "values": self.values,
                "only_active": self.only_active,
                "query": self.query,
                "target": self.target,
                "kind": self.kind == "scale",
                "readout": self.readout not in (None, "text"),
                "train_data": self.train_data,
                "train_limit": self.train_limit,
            }
            for name, value in curve_only.items():
                if value:
                    raise InputError(name, "is given with --search; expected it with --feature.")
        self.check_features([feature_address(text) for text in self.feature])
        super().check()

    def work(self, of: Scope) -> Work:
        """A pass for typical activations, and a steered pass for each strength and feature."""
        if self.search is not None:
            versions = self.top * (1 + (3 if self.random is None else self.random))
            return fit_work(of) + steering_work(of, of.images, versions, of.images)
        strengths = len(self.values) or (7 if self.kind == "clamp" else 5)
        versions = strengths * (1 + (5 if self.random is None else self.random))
        return fit_work(of) + steering_work(of, len(self.query) or of.images, versions)

    def run(self) -> None:
        """Steer, draw, and report."""
        from vit_clt.analysis import steering_curve, steering_search
        from vit_clt.analysis.steering.curve_result import SteeringCurve
        from vit_clt.analysis.steering.search_result import SteeringSearch
        from vit_clt.readouts.class_names import class_number

        folder = self.folder_of(SteeringCurve, SteeringSearch)
        features = [feature_address(text) for text in self.feature]
        vit, clt, data = self.load_all(self.device)
        if self.search is not None:
            class_number(data.class_names, self.search, "search")
        names = self.texts_of(clt)
        self.tell(vit, data, [clt])
        fits = measured_fits(vit, {self.clt: clt}, data)
        study: Study
        if self.search is None:
            study = steering_curve(
                vit,
                clt,
                data,
                self.classifier(vit, data, self.seed),
                features,
                kind=self.kind,
                values=self.values or None,
                tokens=self.tokens,
                only_active=self.only_active,
                query=self.query or None,
                target=self.target,
                n_random=5 if self.random is None else self.random,
                names=names,
                clt_name=self.clt,
                seed=self.seed,
                progress=True,
            )
        else:
            study = steering_search(
                vit,
                clt,
                data,
                self.zero_shot(vit, data),
                self.search,
                top=self.top,
                tokens=self.tokens,
                n_random=3 if self.random is None else self.random,
                names=names,
                clt_name=self.clt,
                seed=self.seed,
                progress=True,
            )
        self.report(folder, study, "steer", fits=fits)
