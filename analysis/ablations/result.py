"""What every result of this room says of itself: which terms stood in for what, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.readings import Readings
from vit_clt.choices import Fill, TokenKind


@dataclass(frozen=True, kw_only=True)
class AblationStudy(Study):
    """A model whose MLP outputs at some targets were rebuilt from chosen terms, and read."""

    readings: Readings
    """The versions of the model and the references, with intervals."""
    targets: list[int]
    """Layers whose MLP rows were overwritten, ascending."""
    tokens: TokenKind
    fill: Fill
    data: str
    split: str | None
    templates: str
    """Name of the zero-shot prompts."""
    seed: int
    l0: float
    """Active features a token and layer, on these rows, over the targets' sources."""
    no_op: bool
    """Whether these rows cannot reach the output (patch rows of the last layer, CLS pooling)."""

    def chosen_facts(self) -> Mapping[str, Any]:
        """Which sets of sources were read, for metrics.json."""
        return {}

    def facts(self) -> Facts:
        """What was overwritten and with what, and the images it was read on."""
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
                "templates": self.templates,
                "target": targets[0] if len(targets) == 1 else targets,
                **self.chosen_facts(),
                "no_op": self.no_op,
            },
        )

    def notes(self) -> Sequence[str]:
        """Whether anything could change at all."""
        return ["these rows cannot reach the output: a no-op"] if self.no_op else []
