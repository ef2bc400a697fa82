"""The result of `vit_clt.analysis.explore`: the studies behind the linked pages of one CLT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from vit_clt.analysis.contributions.study import ScoreStudy
from vit_clt.analysis.explorer.images import ImageReadings
from vit_clt.analysis.explorer.steered_images import SteeredImage
from vit_clt.analysis.explorer.story import SteeredCase, findings, largest_case
from vit_clt.analysis.explorer.verdict import Verdict
from vit_clt.analysis.features.gallery import FeatureGallery
from vit_clt.analysis.fit.cascade_study import Cascade
from vit_clt.analysis.fit.gate import Fit
from vit_clt.analysis.graphs.result import GraphStudy
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.viewer.front_end import FILES
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, repr=False)
class Explorer(Study):
    """Scores, features, images, graphs and steering of one CLT, on pages that link to each other.

    Written to a folder (`vit-clt explore`), index.html opens from disk, without server or network.
    In a notebook the pages stand in the cell.
    """

    name = "explorer"
    endings = ("csv",)
    extra_files = (*FILES, "blocks/images-*.js", "graphs/graph-*.js")

    clt: str
    """Name of the CLT: its folder or Hub id."""
    scores: ScoreStudy
    gallery: FeatureGallery
    readings: ImageReadings
    cascade: Cascade | None
    """All MLPs replaced, by token kind, beside floors; None without a classifier."""
    graphs: GraphStudy | None
    """Graphs of some images; None where the model allows none."""
    no_graphs: str | None
    """Why there are no graphs."""
    steered: list[SteeredImage]
    """Steering of features of the images that have a graph."""
    fit: Fit
    verdict: Verdict | None
    """The verdict of an audit of this CLT; None where none was given."""
    links: Mapping[str, str]
    """Pages of other studies that the overview links to: title and address."""

    def __repr__(self) -> str:
        return f"Explorer({self.caption()})"

    def facts(self) -> Facts:
        """What the scores and features were measured on."""
        features, graphs = self.gallery.facts(), self.graphs
        more: dict[str, Any] = {
            "clt": self.clt,
            "fit": [self.fit.to_json()],
            "graphs_of_images": [] if graphs is None else graphs.query,
            "verdict": None if self.verdict is None else self.verdict.to_json(),
            **features.more,
        }
        return Facts(
            features.data,
            features.n,
            "all",
            "teacher; stream for replaced MLPs and steering",
            features.l0,
            split=features.split,
            fill="mean and zero for the floors",
            seed=features.seed,
            more=more,
        )

    def caption(self) -> str:
        """The CLT, the images, and how many features and graphs the pages show."""
        n_graphs = 0 if self.graphs is None else len(self.graphs.query)
        return (
            f"CLT {self.clt} on {self.gallery.caption()}: {len(self.gallery.pages)} features, "
            f"{self.gallery.n_images} images, {n_graphs} graphs"
        )

    def to_frame(self) -> pd.DataFrame:
        """The scores, as `ScoreStudy.to_frame`."""
        return self.scores.to_frame()

    def shown(self) -> pd.DataFrame:
        """The scores of the last layer."""
        return self.scores.shown()

    def notes(self) -> Sequence[str]:
        """What was found, the verdict, and what a score does not say."""
        verdict = "Not audited." if self.verdict is None else self.verdict.text
        return [*self.findings(), verdict, *self.scores.notes()]

    @property
    def case(self) -> SteeredCase | None:
        """The largest change that steering made; None without steering."""
        return largest_case(self.steered)

    def findings(self) -> list[str]:
        """What was found, in words: up to three sentences."""
        names = self.gallery.data.class_names
        return findings(self.scores, self.fit, self.cascade, self.case, self.verdict, names)

    def metrics(self) -> list[Metric]:
        """The scores, the replacement of all MLPs, and the agreement of graphs."""
        cascade = [] if self.cascade is None else self.cascade.metrics()
        graphs = [] if self.graphs is None else self.graphs.metrics()
        return [*self.scores.metrics(), *cascade, *graphs]

    def figure(self) -> go.Figure:
        """The heatmaps."""
        return self.scores.figure()

    def companions(self) -> Sequence[Study]:
        """The names of features, with their tests."""
        return self.gallery.companions()

    def extras(self) -> Iterable[tuple[str, str | bytes]]:
        """The pages, file after file."""
        from vit_clt.analysis.explorer.contents import explorer_contents

        return explorer_contents(self)

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(HTML(self._repr_html_()))

    def _repr_html_(self) -> str:
        """The pages in one frame that needs no file beside it."""
        from vit_clt.analysis.viewer.inline import inline_frame

        return inline_frame(self.extras(), f"Explorer of {self.clt}")
