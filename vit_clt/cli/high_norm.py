"""`vit-clt high-norm`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.optional_clt import OptionalCLT
from vit_clt.cli.study_work import fit_work, high_norm_work
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class HighNorm(OptionalCLT, StudyOptions, SeedOptions):
    """Which patch rows have outlying norms, and what do they do to a CLT? A map a layer.

    Example: vit-clt high-norm --clt out/demo/clt --data digits --out out/high_norm
    """

    deviations: float = 6.0
    """A patch row is high-norm if its residual stream after the block has a norm this many robust
    standard deviations (1.4826 MAD) above the median of patch rows, ..."""
    multiple: float = 2.0
    """... and above this multiple of the median."""

    def check(self) -> None:
        """Refuse a rule by which ordinary rows would be high-norm."""
        for name, least in (("deviations", 0), ("multiple", 1)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise InputError(name, f"is {value:g}; expected a number of at least {least}.")
        super().check()

    def work(self, of: Scope) -> Work:
        """Two passes; with a CLT the second one encodes and decodes."""
        return (fit_work(of) if of.clts else Work()) + high_norm_work(of, of.images)

    def run(self) -> None:
        """Mark rows, measure, and report."""
        from vit_clt.analysis.high_norm.result import HighNorm as Result
        from vit_clt.analysis.high_norm.rule import HighNormRule
        from vit_clt.analysis.high_norm.study import high_norm_rows

        folder = self.folder_of(Result)
        vit, clt, data = self.load_with_clt(self.device)
        self.tell(vit, data, [] if clt is None else [clt])
        fits = [] if clt is None else measured_fits(vit, {str(self.clt): clt}, data)
        result = high_norm_rows(
            vit,
            clt,
            data,
            rule=HighNormRule(self.deviations, self.multiple),
            clt_name=str(self.clt),
            seed=self.seed,
            progress=True,
        )
        self.report(folder, result, "high-norm", fits=fits)
