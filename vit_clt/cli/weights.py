"""`vit-clt weights`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.cli.command import StudyOptions
from vit_clt.cli.options import load_clt
from vit_clt.transcoder.saved_files import saved_shape


@dataclass(kw_only=True)
class Weights(StudyOptions):
    """Decoder norms per source and target layer, cross-layer shares, concentration: no images.

    Example: vit-clt weights --clt out/demo/clt --out out/weights
    """

    imports = ("vit_clt.transcoder.model",)

    clt: str
    """Folder or Hub id of the CLT."""

    def check(self) -> None:
        """Refuse a CLT that is not there."""
        saved_shape(self.clt)
        super().check()

    def run(self) -> None:
        """Measure, draw, and report."""
        from vit_clt.analysis.contributions.decoder_weights import DecoderNorms, decoder_norms

        folder = self.folder_of(DecoderNorms)
        clt = load_clt(self.clt, self.device)
        self.report(folder, decoder_norms(clt, self.clt), "weights")
