"""`vit-clt graph`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import NormsChoice
from vit_clt.cli.command import SeedOptions, StudyOptions
from vit_clt.cli.feature_work import graph_work
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.names_options import NamesOptions
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import PromptOptions
from vit_clt.cli.study_work import fit_work
from vit_clt.cli.supernode_options import SupernodeOptions
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class Graph(NamesOptions, PromptOptions, SupernodeOptions, CLTOptions, StudyOptions, SeedOptions):
    """What drives a class logit of an image: features, errors, patches, and the paths between.

    Example: vit-clt graph --clt out/demo/clt --data digits --query 0 5 17 --out out/graph
    """

    query: tuple[int, ...] = (0, 1, 2)
    """Numbers of the images of --data that are studied, counted from 0."""
    target: str = "predicted"
    """Logit that is taken apart: that of the predicted class ("predicted"), of the label ("label"),
    or of a class given by its name, a part of the name that is in no other, or its number."""
    contrast: str | None = None
    """Class whose logit is subtracted, given in the same way."""
    max_nodes: int = 60
    """Largest number of features, errors and patches in a graph."""
    keep: float = 0.8
    """Share of all influence at which no further nodes are added to a graph."""
    norms: NormsChoice = "auto"
    """LayerNorms and the norm of the embedding are held, so that effects sum to the logit, or
    differentiated, so that effects are those of a small change; "auto" takes those that the
    interventions support, held if both."""
    interventions: int = 64
    """Number of features that are silenced in each image to check the effects, half of them drawn
    at random."""

    def check(self) -> None:
        """Refuse groups by name where there are no names."""
        if self.group == "name" and self.names is None:
            raise InputError("group", 'is "name", but --names is missing; expected both.')
        super().check()

    def work(self, of: Scope) -> Work:
        """Frozen passes and gradients of each image, and a pass for each feature silenced."""
        return fit_work(of) + len(self.query) * graph_work(of, self.interventions)

    def run(self) -> None:
        """Compute effects and graphs, check them, and report."""
        from vit_clt.analysis import graph_study
        from vit_clt.analysis.graphs.result import GraphStudy

        folder = self.folder_of(GraphStudy)
        vit, clt, data = self.load_all(self.device)
        self.tell(vit, data, [clt])
        fits = measured_fits(vit, {self.clt: clt}, data)
        study = graph_study(
            vit,
            clt,
            data,
            self.zero_shot(vit, data),
            self.query,
            target=self.target,
            contrast=self.contrast,
            max_nodes=self.max_nodes,
            keep=self.keep,
            norms=self.norms,
            interventions=self.interventions,
            group=self.node_groups(),
            group_cosine=self.group_cosine,
            feature_names=self.texts_of(clt),
            clt_name=self.clt,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, study, "graph", fits=fits)
