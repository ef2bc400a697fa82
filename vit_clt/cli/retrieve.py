"""`vit-clt retrieve`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vit_clt.choices import SearchBackend, TokenKind
from vit_clt.cli.command import Command, SeedOptions, StudyOptions
from vit_clt.cli.feature_work import retrieval_work
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.layers import layer_numbers
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.study_work import fit_work
from vit_clt.data.form_names import check_form
from vit_clt.errors import InputError, renamed
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT


@dataclass(kw_only=True)
class Retrieve(CLTOptions, StudyOptions, SeedOptions):
    """Which images of a corpus are alike in the codes of each layer, and have they one class?

    Example: vit-clt retrieve --clt out/demo/clt --data digits --query 0 5 17 --out out/retrieval
    """

    other_names: ClassVar = {**Command.other_names, "backend": "search", "k": "top"}

    corpus: str | None = None
    """Images to search among, a form as in --data; default: the train split of --data."""
    corpus_limit: int | None = None
    """Use only the first N images of the corpus."""
    tokens: tuple[TokenKind, ...] | None = None
    """Token rows whose codes are averaged, one kind or several; default: cls and patch, or the one
    that the model has."""
    layers: str | None = None
    """Source layers, e.g. 7-11 or 0,4,7-11 (inclusive); default: every layer."""
    query: tuple[int, ...] | None = None
    """Numbers of the images of --data whose nearest images are shown; default: the first three.
    Class consistency is measured on all images."""
    top: int = 5
    """Number of nearest images per query and layer."""
    index: Path | None = None
    """Folder of the index, which is used if it exists; otherwise it is built and saved there."""
    search: SearchBackend = "exact"
    """How images are searched: every image is compared (exact), or faiss proposes some (faiss,
    which needs the extra "faiss")."""
    untrained: bool = False
    """Also retrieve by the codes of an untrained CLT of the same shape, for comparison; this
    indexes the corpus a second time."""

    def check(self) -> None:
        """Refuse layers that the CLT has not, and a corpus that is not there."""
        if self.layers is not None:
            self.check_layers("layers", layer_numbers(self.layers))
        if self.corpus is not None:
            with renamed(data="corpus"):
                check_form(self.corpus, "train")
        super().check()

    def work(self, of: Scope) -> Work:
        """A pass over queries and corpus, and a search of every layer; for an untrained CLT too."""
        kinds = len(self.tokens or [kind for kind in of.kinds if kind in ("cls", "patch")])
        layers = of.layers if self.layers is None else len(layer_numbers(self.layers))
        return fit_work(of) + (1 + self.untrained) * retrieval_work(of, layers, kinds)

    def read_beside(self, vit: HookedViT, data: ImageData) -> ImageData | None:
        """The images that are searched."""
        return self.load_corpus(vit, data)

    def run(self) -> None:
        """Index, search, draw, and report."""
        from vit_clt.analysis.retrieval.consistency import ClassConsistency
        from vit_clt.analysis.retrieval.study import retrieval_study

        folder = self.folder_of(ClassConsistency)
        vit, clt, data = self.load_all(self.device)
        corpus = self.load_corpus(vit, data)
        self.tell(vit, data, [clt], corpus)
        fits = measured_fits(vit, {self.clt: clt}, data)
        study = retrieval_study(
            vit,
            clt,
            data,
            corpus,
            range(min(3, len(data))) if self.query is None else self.query,
            k=self.top,
            tokens=self.tokens or vit.cfg.rows.having(("cls", "patch")),
            layers=None if self.layers is None else layer_numbers(self.layers),
            index_folder=self.index,
            backend=self.search,
            control=self.untrained,
            clt_name=self.clt,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, study, "retrieve", fits=fits)

    def load_corpus(self, vit: HookedViT, data: ImageData) -> ImageData:
        """The images to search among: --corpus, or the train split of --data."""
        if self.corpus is None and data.split is None:
            raise InputError(
                "corpus",
                f"is missing; {data.name} has no train split to search, expected --corpus "
                "with a form of data.",
            )
        options = replace(
            self, data=self.corpus or self.data, split="train", limit=self.corpus_limit
        )
        with renamed(data="corpus", limit="corpus_limit"):
            return options.load_images(vit)
