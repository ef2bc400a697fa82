"""The study of retrieval: an index, class consistency, and what is retrieved for some queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vit_clt.analysis.retrieval.consistency import ClassConsistency, class_consistency
from vit_clt.analysis.retrieval.descriptors import Descriptors, untrained
from vit_clt.analysis.retrieval.files import is_index
from vit_clt.analysis.retrieval.index import RetrievalIndex, own_rows
from vit_clt.analysis.retrieval.retrieved import retrieve
from vit_clt.analysis.stats.nearest import check_faiss
from vit_clt.analysis.stats.query import check_query
from vit_clt.choices import SearchBackend, TokenKind
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.transcoder.model import CrossLayerTranscoder


def retrieval_study(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    corpus: ImageData,
    query: Sequence[int],
    *,
    k: int = 5,
    tokens: Sequence[TokenKind] = ("cls", "patch"),
    layers: Sequence[int] | None = None,
    index_folder: Path | None = None,
    backend: SearchBackend = "exact",
    control: bool = False,
    clt_name: str = "in memory",
    seed: int = 0,
    progress: bool = False,
) -> ClassConsistency:
    """Class consistency of all images of `data`, with the images retrieved for some of them.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: the labelled query images.
        corpus: the labelled images searched among, of the same classes. An image that is in both
            is left out of its own neighbours.
        query: numbers of the images of `data` whose nearest images are shown.
        k: number of nearest images per query and layer.
        tokens: the kinds of rows whose codes are pooled.
        layers: source layers; all by default.
        index_folder: folder of the index, which is used if it exists and otherwise written.
        backend: as in `RetrievalIndex.search`.
        control: measure the codes of an untrained CLT of the same shape too.
        clt_name: what the CLT is called in captions.
        seed: seed of the bootstrap and of the untrained CLT.
        progress: show progress bars.

    Raises:
        InputError: the classes of the corpus are others, a number is out of range, the index is of
            another corpus, model or CLT, or what `class_consistency` refuses.
    """
    if k < 1:
        raise InputError("k", f"is {k}; expected at least 1.")
    if backend == "faiss":
        check_faiss()
    check_query(query, data)
    if corpus.class_names != data.class_names:
        raise InputError(
            "corpus",
            f"is {corpus.name} with {len(corpus.class_names)} classes that are not the "
            f"{len(data.class_names)} of {data.name}; expected the same, in the same order.",
        )
    index = _kept_index(index_folder, vit, clt, corpus, tokens, layers, progress)
    left_out = own_rows(data, corpus)
    described = index.describe(data, progress=progress)
    examples = [
        retrieve(
            index,
            described,
            data,
            corpus,
            query,
            k,
            tokens=kind,
            own_rows=left_out,
            backend=backend,
        )
        for kind in index.facts.tokens
    ]
    return class_consistency(
        index,
        described,
        k=k,
        control=untrained_control(index, data, corpus, seed, progress) if control else None,
        own_rows=left_out,
        backend=backend,
        examples=examples,
        clt_name=clt_name,
        seed=seed,
        progress=progress,
    )


def untrained_control(
    index: RetrievalIndex,
    data: ImageData,
    corpus: ImageData,
    seed: int = 0,
    progress: bool = False,
) -> tuple[RetrievalIndex, Descriptors]:
    """Index and queries of the same images by an untrained CLT of the same shape.

    Args:
        index: the index of the trained CLT.
        data: the query images.
        corpus: the images of the index.
        seed: seed of the untrained CLT.
        progress: show progress bars.
    """
    twin, facts = untrained(index.clt, seed), index.facts
    other = RetrievalIndex.build(
        index.vit, twin, corpus, tokens=facts.tokens, layers=facts.layers, progress=progress
    )
    return other, other.describe(data, progress=progress)


def _kept_index(
    folder: Path | None,
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    corpus: ImageData,
    tokens: Sequence[TokenKind],
    layers: Sequence[int] | None,
    progress: bool,
) -> RetrievalIndex:
    """The index kept in the folder, checked against this CLT and corpus, or a new one."""
    if folder is not None and is_index(folder):
        index = RetrievalIndex.load(folder, vit, clt)
        index.check_corpus(corpus)
        return index.only(tokens, layers)
    index = RetrievalIndex.build(vit, clt, corpus, tokens=tokens, layers=layers, progress=progress)
    if folder is not None:
        index.save(folder)
    return index
