"""The base of all ablation results: what was overwritten, with what, and on which images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.readings import Readings
from vit_clt.choices import Fill, TokenKind

SKIP_STAYS = "the term of the skip connection stays in every set and beside the bias alone"


@dataclass(frozen=True, kw_only=True)
class AblationStudy(Study):
    """Readings of a model whose MLP outputs at some targets were rebuilt from a subset of terms.

    Subclasses say which subsets: one (`Ablation`), one for every k (`AblationCurves`), all of one
    size (`KeepSets`).
    """

    readings: Readings
    """Readings of the altered versions of the model and of the references."""
    targets: list[int]
    """Layers whose MLP rows were overwritten, ascending."""
    tokens: TokenKind
    fill: Fill
    data: str
    split: str | None
    readout: str
    """Name of the readout of classes."""
    seed: int
    l0: float
    """Active features a token row and layer, on these rows, over the targets' sources."""
    no_op: bool
    """Whether these rows cannot reach the output (patch rows of the last layer, CLS pooling)."""
    has_skip: bool = False
    """Whether the CLT has a skip connection, whose term stays in every set and beside the bias."""

    def source_facts(self) -> Mapping[str, Any]:
        """Which sets of sources were kept or dropped, for metrics.json."""
        return {}

    def facts(self) -> Facts:
        """What was overwritten and with what, and the images the model was read on."""
        targets = self.targets
        return Facts(
            data=self.data,
            n=self.readings.n,
            tokens=self.tokens,
            trajectory="teacher",
            l0=self.l0,
            split=self.split,
            fill=self.fill,
            seed=self.seed,
            more={
                "readout": self.readout,
                "target": targets[0] if len(targets) == 1 else targets,
                **self.source_facts(),
                "no_op": self.no_op,
                **(self.readings.groups.facts() if self.readings.groups else {}),
            },
        )

    def notes(self) -> Sequence[str]:
        """What to know beside the table: a no-op, a term that always stays, what draws are of."""
        notes = ["these rows cannot reach the output: a no-op"] if self.no_op else []
        if self.has_skip:
            notes.append(SKIP_STAYS)
        if self.readings.groups is not None:
            notes.append(f"intervals: bootstrap over {self.readings.groups.text}")
        return notes
