"""`vit-clt faithfulness`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Inputs, TokenKind
from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.layers import layer_numbers
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import faithfulness_work, fit_work
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class Faithfulness(ReadoutOptions, CLTOptions, StudyOptions, SeedOptions):
    """How closely the ViT with the CLT in its MLPs' place answers as the ViT does, and floors.

    The measures of prompt sensitivity compare all of the 18 CIFAR templates.

    Example: vit-clt faithfulness --clt out/demo/clt --data digits --layers 4-7
        --out out/faithfulness
    """

    layers: str | None = None
    """Layers whose MLPs are replaced, e.g. 7-11 or 0,4,7-11 (inclusive); default: every layer."""
    tokens: TokenKind = "cls"
    """Token rows whose MLP outputs are replaced."""
    inputs: Inputs = "stream"
    """Where codes come from: the live, already altered stream (stream) or a clean pass
    (teacher)."""

    def check(self) -> None:
        """Refuse layers that the CLT has not."""
        if self.layers is not None:
            self.check_layers("layers", layer_numbers(self.layers))
        super().check()

    def work(self, of: Scope) -> Work:
        """A pass for means, a clean one, the replaced one and two floors, and ranks of pairs."""
        first = 0 if self.layers is None else min(layer_numbers(self.layers))
        return fit_work(of) + faithfulness_work(of, of.images, first, self.tokens)

    def run(self) -> None:
        """Compare, and report."""
        from vit_clt.analysis.fit import faithfulness_study

        folder = self.folder_of(faithfulness_study.SurrogateFaithfulness)
        layers = None if self.layers is None else layer_numbers(self.layers)
        vit, clt, data = self.load_all(self.device)
        self.tell(vit, data, [clt])
        fits = measured_fits(vit, {self.clt: clt}, data)
        result = faithfulness_study.surrogate_faithfulness(
            vit,
            clt,
            data,
            self.classifier(vit, data, self.seed),
            layers=layers,
            tokens=self.tokens,
            inputs=self.inputs,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, result, "faithfulness", fits=fits)
