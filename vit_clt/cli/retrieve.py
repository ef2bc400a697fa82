"""`vit-clt retrieve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vit_clt.choices import SearchBackend, TokenKind
from vit_clt.cli.options import CLTOptions, Command, SeedOptions, StudyOptions, layer_numbers
from vit_clt.errors import InputError, renamed

if TYPE_CHECKING:
    from vit_clt.analysis import RetrievalIndex
    from vit_clt.analysis.retrieval.descriptors import Descriptors
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class Retrieve(CLTOptions, StudyOptions, SeedOptions):
    """Which images of a corpus are alike in the codes of each layer, and have they one class?

    Example: vit-clt retrieve --clt out/clt --data digits --query 0 5 17 --out out/retrieval
    """

    other_names: ClassVar = {**Command.other_names, "backend": "search", "k": "top"}

    corpus: str | None = None
    """Images to search among, a form as in --data; default: the train split of --data."""
    corpus_limit: int | None = None
    """Use only the first N images of the corpus."""
    tokens: tuple[TokenKind, ...] = ("cls", "patch")
    """Token rows whose codes are averaged, one kind or several."""
    layers: str | None = None
    """Source layers, e.g. 7-11 or 0,4,7-11 (inclusive); default: every layer."""
    query: tuple[int, ...] = (0, 1, 2)
    """Numbers of the images of --data whose nearest images are shown. Class consistency is measured
    on all images."""
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

    def run(self) -> None:
        """Index, search, draw, and report."""
        from vit_clt.analysis import class_consistency
        from vit_clt.analysis.retrieval.consistency import ClassConsistency
        from vit_clt.analysis.retrieval.index import own_rows
        from vit_clt.analysis.retrieval.retrieved import retrieve
        from vit_clt.analysis.stats.nearest import check_faiss

        if self.top < 1:
            raise InputError("top", f"is {self.top}; expected at least 1.")
        if self.search == "faiss":
            check_faiss()
        folder = self.folder_of(ClassConsistency)
        vit, clt, data = self.load_all(self.device)
        for row in self.query:
            if not 0 <= row < len(data):
                raise InputError(
                    "query", f"is {row}; expected rows from 0 to {len(data) - 1} of {data.name}."
                )
        corpus = self.load_corpus(vit, data)
        index = self.load_index(vit, clt, corpus)
        corpus_rows = own_rows(data, corpus)
        described = index.describe(data, progress=True)
        examples = [
            retrieve(
                index,
                described,
                data,
                corpus,
                self.query,
                self.top,
                tokens=tokens,
                own_rows=corpus_rows,
                backend=self.search,
            )
            for tokens in self.tokens
        ]
        result = class_consistency(
            index,
            described,
            k=self.top,
            control=self.control(index, data, corpus) if self.untrained else None,
            own_rows=corpus_rows,
            backend=self.search,
            examples=examples,
            clt_name=self.clt,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, result, "retrieve")

    def control(
        self, index: RetrievalIndex, data: ImageData, corpus: ImageData
    ) -> tuple[RetrievalIndex, Descriptors]:
        """Index and queries of the same images by an untrained CLT of the same shape."""
        from vit_clt.analysis import RetrievalIndex
        from vit_clt.analysis.retrieval.descriptors import untrained

        other = RetrievalIndex.build(
            index.vit,
            untrained(index.clt, self.seed),
            corpus,
            tokens=index.facts.tokens,
            layers=index.facts.layers,
            progress=True,
        )
        return other, other.describe(data, progress=True)

    def load_corpus(self, vit: HookedViT, data: ImageData) -> ImageData:
        """The images to search among, of the queries' classes."""
        from vit_clt.data.forms import load_data

        if self.corpus is None and data.split is None:
            raise InputError(
                "corpus",
                f"is missing; {data.name} has no train split to search, expected --corpus "
                "with a form of data.",
            )
        with renamed(data="corpus", limit="corpus_limit"):
            corpus = load_data(
                self.corpus or self.data or "digits",
                vit=vit,
                split="train",
                limit=self.corpus_limit,
                image_column=self.image_column,
                label_column=self.label_column,
                class_names=self._names(),
            )
        if corpus.class_names != data.class_names:
            raise InputError(
                "corpus",
                f"is {corpus.name} with {len(corpus.class_names)} classes that are not the "
                f"{len(data.class_names)} of {data.name}; expected the same, in the same order.",
            )
        return corpus

    def load_index(
        self, vit: HookedViT, clt: CrossLayerTranscoder, corpus: ImageData
    ) -> RetrievalIndex:
        """The index kept in --index, checked against this CLT and corpus, or a new one."""
        from vit_clt.analysis import RetrievalIndex
        from vit_clt.analysis.retrieval.files import is_index

        layers = None if self.layers is None else layer_numbers(self.layers)
        if self.index is not None and is_index(self.index):
            index = RetrievalIndex.load(self.index, vit, clt)
            index.check_corpus(corpus)
            return index.only(self.tokens, layers)
        index = RetrievalIndex.build(
            vit, clt, corpus, tokens=self.tokens, layers=layers, progress=True
        )
        if self.index is not None:
            index.save(self.index)
        return index
