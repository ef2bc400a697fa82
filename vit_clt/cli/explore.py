"""`vit-clt explore`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vit_clt.cli.command import Command, MemoryOptions, SeedOptions
from vit_clt.cli.feature_work import explore_work, gallery_work
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.supernode_options import SupernodeOptions
from vit_clt.cli.vocabulary_options import VocabularyOptions
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class Explore(
    VocabularyOptions,
    ReadoutOptions,
    SupernodeOptions,
    CLTOptions,
    Command,
    MemoryOptions,
    SeedOptions,
):
    """Linked pages of a CLT: heatmap, features, images, graphs, steering. They open from disk.

    Example: vit-clt explore --clt out/demo/clt --data digits --out out/explore
    """

    count: int | None = None
    """Number of features per layer that have a page, spread over how often they fire; default: all
    that fire, or as many as keep their activation maps below 1 GiB."""
    graphs: int = 12
    """Number of images that have a graph and steering: of every class in turn those that the model
    is least sure of."""
    interventions: int = 16
    """Features silenced in each of these images, to check its graph."""
    top: int = 12
    """Number of most active images kept of each feature."""
    effect_images: int = 200
    """Number of first images on which direct effects on class logits are measured."""
    audit: Path | None = None
    """Output folder of vit-clt audit or claims of this CLT, whose verdict stands on every page."""

    def check(self) -> None:
        """Refuse an audit that is not there."""
        super().check()
        if self.audit is not None and not (self.audit / "metrics.json").is_file():
            raise InputError(
                "audit",
                f"is {self.audit}, which holds no metrics.json; expected the output folder of "
                "vit-clt audit or vit-clt claims.",
            )

    def work(self, of: Scope) -> Work:
        """The gallery, answers and neighbours of every image, graphs, cascade and scores."""
        # by default all that fire have a page, where activation maps allow it; about all do
        pages = of.layers * (of.features if self.count is None else self.count)
        work = explore_work(of, pages, self.graphs, self.interventions, self.kept_bytes)
        return work + gallery_work(
            of, of.layers, 0, self.effect_images, named=self.vocabulary != "none"
        )

    def run(self) -> None:
        """Run the studies behind the pages, and write them."""
        self.write({})

    def write(self, links: Mapping[str, str]) -> None:
        """The same, with links to pages of other studies: title and address."""
        from vit_clt.analysis.explorer.result import Explorer
        from vit_clt.analysis.explorer.study import explore
        from vit_clt.analysis.explorer.verdict import read_verdict
        from vit_clt.analysis.features.names import FeatureNames

        folder = self.folder_of(Explorer, FeatureNames)
        vit, clt, data = self.load_all(self.device)
        verdict = None if self.audit is None else read_verdict(self.audit, clt)
        classifier = self.classifier_if_any(vit, data, self.seed)
        vocabulary = self.texts(vit, classifier, data)
        # of the files beside the pages: in a notebook the pages stand alone
        names = {} if vocabulary is None else {"Names of features, and their tests": "names.html"}
        self.tell(vit, data, [clt])
        explorer = explore(
            vit,
            clt,
            data,
            classifier,
            count=self.count,
            graphs=self.graphs,
            interventions=self.interventions,
            group=self.node_groups(),
            group_cosine=self.group_cosine,
            top=self.top,
            effect_images=self.effect_images,
            vocabulary=vocabulary,
            verdict=verdict,
            clt_name=self.clt,
            links={**links, **names},
            kept_bytes=self.kept_bytes,
            seed=self.seed,
            progress=True,
        )
        last_line = f"open {folder.path / 'index.html'} in a browser"
        self.report(folder, explorer, "explore", last_line)
