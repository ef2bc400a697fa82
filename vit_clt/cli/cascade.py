"""`vit-clt cascade`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Inputs, TokenKind
from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.layers import layer_numbers
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import cascade_work, fit_work
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class Cascade(ReadoutOptions, CLTOptions, StudyOptions, SeedOptions):
    """Accuracy, loss and floors with the CLT in place of the MLPs from layer s on, for every s.

    Example: vit-clt cascade --clt out/demo/clt --data digits --inputs stream teacher
        --out out/cascade
    """

    layers: str | None = None
    """First layers s, e.g. 7-11 or 0,4,7-11 (inclusive); default: every layer."""
    tokens: tuple[TokenKind, ...] | None = None
    """Token rows whose MLP outputs are replaced, one kind or several; default: every kind that the
    model has."""
    inputs: tuple[Inputs, ...] = ("stream",)
    """Where codes come from: the live stream (stream), a clean pass (teacher), or both."""

    def check(self) -> None:
        """Refuse layers that the CLT has not."""
        if self.layers is not None:
            self.check_layers("layers", layer_numbers(self.layers))
        super().check()

    def work(self, of: Scope) -> Work:
        """A pass for means, a clean one, and two floors and a replaced pass for each range."""
        firsts = range(of.layers) if self.layers is None else layer_numbers(self.layers)
        kinds = self.tokens or of.kinds
        return fit_work(of) + cascade_work(of, of.images, firsts, kinds, len(set(self.inputs)))

    def run(self) -> None:
        """Replace, read, and report."""
        from vit_clt.analysis.fit import cascade_study

        folder = self.folder_of(cascade_study.Cascade)
        firsts = None if self.layers is None else layer_numbers(self.layers)
        vit, clt, data = self.load_all(self.device)
        self.tell(vit, data, [clt])
        fits = measured_fits(vit, {self.clt: clt}, data)
        result = cascade_study.cascade(
            vit,
            clt,
            data,
            self.classifier(vit, data, self.seed),
            tokens=self.tokens or vit.cfg.rows.kinds,
            inputs=self.inputs,
            first_layers=firsts,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, result, "cascade", fits=fits)
