"""`vit-clt faithfulness`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import Inputs, Templates, TokenKind
from vit_clt.cli.options import CLTOptions, SeedOptions, StudyOptions, layer_numbers


@dataclass(kw_only=True)
class Faithfulness(CLTOptions, StudyOptions, SeedOptions):
    """How closely the ViT with the CLT in its MLPs' place answers as the ViT does, and floors.

    Example: vit-clt faithfulness --clt out/clt --data digits --layers 4-7 --out out/faithfulness
    """

    layers: str | None = None
    """Layers replaced: one, or an inclusive range such as 7-11. Default: all."""
    tokens: TokenKind = "cls"
    """Rows replaced."""
    inputs: Inputs = "stream"
    """Where codes come from: the live, altered stream, or a clean pass."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates. Prompt sensitivity always
    compares the 18."""

    def run(self) -> None:
        """Compare, and report."""
        from vit_clt.analysis.fit import faithfulness_study
        from vit_clt.zero_shot import ZeroShot

        folder = self.folder_of(faithfulness_study.SurrogateFaithfulness)
        layers = None if self.layers is None else layer_numbers(self.layers)
        vit, clt, data = self.load_all(self.device)
        result = faithfulness_study.surrogate_faithfulness(
            vit,
            clt,
            data,
            ZeroShot(vit, data.class_names, self.templates),
            layers=layers,
            tokens=self.tokens,
            inputs=self.inputs,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, result, "faithfulness")
