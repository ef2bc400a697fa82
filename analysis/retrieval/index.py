"""Layerwise retrieval: which images of a corpus look alike to a layer's sparse codes?

For image q and source layer s, retrieval finds the K images of the corpus whose pooled codes are
most similar to those of q,

    N_s(q) = top-K over corpus images j of sim(z_s(q), z_s(j))

(the paper's equation 12; that `sim` is the cosine by default is our choice). Retrieved images show
what the codes at depth s tell apart. They do not show what the ViT does with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int
from torch import Tensor

from vit_clt.analysis.retrieval.descriptors import Descriptors, describe
from vit_clt.analysis.retrieval.files import (
    FACTS_FILE,
    packed,
    read_arrays,
    read_facts,
    unpacked,
    write_index,
)
from vit_clt.analysis.retrieval.neighbours import Neighbours
from vit_clt.analysis.stats.nearest import Similarity, nearest
from vit_clt.choices import SearchBackend, TokenKind, check_choice
from vit_clt.data.fingerprints import data_fingerprint, fingerprint_as, sampled_fingerprint
from vit_clt.data.images import ImageData, ImageSubset, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.inputs import reading
from vit_clt.outputs import check_same
from vit_clt.progress import Progress
from vit_clt.transcoder.identity import encoder_sha256
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.typed import fits, made

Space = Literal["codes", "inputs"]


@dataclass(frozen=True)
class IndexFacts:
    """What an index was made of and how, as saved in index.json."""

    tokens: list[TokenKind]
    layers: list[int]
    similarity: Similarity
    n_images: int
    n_features: int
    d_model: int
    data: str
    split: str | None
    class_names: list[str]
    data_sha256: str
    """`data_fingerprint` of the corpus."""
    encoder_sha256: str
    """Hash of the CLT's encoders, on which codes depend."""
    weights_sha256: str
    """Hash of the teacher's vision tower."""
    activation: str
    model: str


@dataclass(frozen=True)
class RetrievalIndex:
    """Pooled codes of a corpus, one sparse matrix per token kind and source layer.

    The index also holds the plain x_s, pooled alike, to compare the codes with. In memory
    and on disk an image takes 8 bytes for each active feature of its pooled code and 4 d bytes for
    x_s, per layer and token kind: 0.2 GB and 0.15 GB a layer for 50,000 images of a ViT-B whose
    patch codes pool to 523 entries.
    """

    vit: HookedViT
    clt: CrossLayerTranscoder
    corpus: Descriptors
    facts: IndexFacts

    @classmethod
    def build(
        cls,
        vit: HookedViT,
        clt: CrossLayerTranscoder,
        corpus: ImageData | Tensor | Iterable[Any],
        *,
        tokens: TokenKind | Sequence[TokenKind] = "cls",
        layers: Sequence[int] | None = None,
        similarity: Similarity = "cosine",
        progress: bool = False,
    ) -> RetrievalIndex:
        """Describe every image of a corpus, batch by batch.

        Args:
            vit: the teacher.
            clt: its transcoder.
            corpus: images to search among.
            tokens: "cls" (z_s of the class token), "patch" (mean of z_s over patch rows) or "all",
                or several of them on one pass.
            layers: source layers; all by default.
            similarity: "cosine", or "dot", which prefers large codes.
            progress: show a progress bar.

        Raises:
            InputError: the corpus is empty, an argument is out of range, or the CLT is of another
                model.
        """
        check_choice("similarity", similarity, get_args(Similarity))
        data = as_image_data(corpus)
        described = describe(vit, clt, data, tokens=tokens, layers=layers, progress=progress)
        teacher = vit.identity()
        facts = IndexFacts(
            tokens=list(described.codes),
            layers=list(next(iter(described.codes.values()))),
            similarity=similarity,
            n_images=len(data),
            n_features=clt.config.n_features,
            d_model=clt.config.d_model,
            data=data.name,
            split=data.split,
            class_names=list(data.class_names),
            data_sha256=data_fingerprint(data),
            encoder_sha256=encoder_sha256(clt),
            weights_sha256=teacher.weights_sha256,
            activation=teacher.activation,
            model=teacher.model,
        )
        return cls(vit, clt, described, facts)

    def describe(
        self, images: ImageData | Tensor | Iterable[Any], *, progress: bool = False
    ) -> Descriptors:
        """Descriptors of query images by the kinds and layers of this index, to be searched for."""
        facts = self.facts
        return describe(
            self.vit,
            self.clt,
            images,
            tokens=facts.tokens,
            layers=facts.layers,
            progress=progress,
        )

    def search(
        self,
        queries: Descriptors | ImageData | Tensor | Iterable[Any],
        k: int,
        *,
        tokens: TokenKind = "cls",
        space: Space = "codes",
        own_rows: Sequence[int] | np.ndarray | None = None,
        backend: SearchBackend = "exact",
        progress: bool = False,
    ) -> dict[int, Neighbours]:
        """The k nearest images of the corpus to each query, by layer.

        Args:
            queries: images, or what `describe` made of them.
            k: number of nearest images per query.
            tokens: one of the token kinds that the index holds.
            space: "codes", or "inputs" for the plain x_s, the baseline.
            own_rows: for each query its number in the corpus, or -1 if it is not there. That image
                is left out of its own neighbours; copies of it in the corpus are not.
            backend: "exact" compares every image; "faiss" needs the extra of that name.
            progress: show a progress bar.

        Raises:
            InputError: the queries have another number of features, an argument is out of range, k
                is larger than the corpus, or faiss is not installed.
        """
        if tokens not in self.facts.tokens:
            kinds = ", ".join(f'"{kind}"' for kind in self.facts.tokens)
            raise InputError("tokens", f'is "{tokens}"; this index holds {kinds}.')
        check_choice("space", space, get_args(Space))
        described = queries if isinstance(queries, Descriptors) else self.describe(queries)
        self._check_size(described, tokens)
        left_out = None if own_rows is None else np.asarray(own_rows, dtype=np.int64)
        query_rows: Any = getattr(described, space)[tokens]
        corpus_rows: Any = getattr(self.corpus, space)[tokens]
        neighbours = {}
        title = f"search {tokens} {space}"
        for s in Progress(self.facts.layers, title, unit=" layers", disable=not progress):
            rows, similarities = nearest(
                query_rows[s],
                corpus_rows[s],
                k,
                similarity=self.facts.similarity,
                own_rows=left_out,
                backend=backend,
            )
            neighbours[s] = Neighbours(rows, similarities, self.corpus.labels[rows])
        return neighbours

    def check_corpus(self, data: ImageData) -> None:
        """Refuse images that are not those of this index.

        Raises:
            InputError: the number of images or their pixels differ.
        """
        recorded = self.facts.data_sha256
        if len(data) != self.facts.n_images or fingerprint_as(recorded, data) != recorded:
            raise InputError(
                f"the index holds {self.facts.n_images} images of {self.facts.data}; found "
                f"{len(data)} of {data.name}, with other pixels or rows; expected the same corpus."
            )

    def only(
        self, tokens: Sequence[TokenKind], layers: Sequence[int] | None = None
    ) -> RetrievalIndex:
        """The same index with these token kinds and layers alone.

        Raises:
            InputError: the index does not hold a token kind or layer.
        """
        facts = self.facts
        kept_layers = facts.layers if layers is None else sorted(set(layers))
        for name, values, known in (
            ("tokens", tokens, facts.tokens),
            ("layers", kept_layers, facts.layers),
        ):
            for value in values:
                if value not in known:
                    raise InputError(
                        name, f"contains {value}; this index holds {', '.join(map(str, known))}."
                    )
        kinds = list(dict.fromkeys(tokens))
        whole = self.corpus
        corpus = replace(
            whole,
            codes={kind: {s: whole.codes[kind][s] for s in kept_layers} for kind in kinds},
            inputs={kind: {s: whole.inputs[kind][s] for s in kept_layers} for kind in kinds},
            l0={kind: {s: whole.l0[kind][s] for s in kept_layers} for kind in kinds},
        )
        return replace(
            self,
            corpus=corpus,
            facts=replace(facts, tokens=kinds, layers=list(kept_layers)),
        )

    def _check_size(self, queries: Descriptors, tokens: TokenKind) -> None:
        facts = self.facts
        sizes = {s: codes.shape[1] for s, codes in queries.codes.get(tokens, {}).items()}
        for s in facts.layers:
            if sizes.get(s) != facts.n_features:
                size = f"{sizes[s]} features" if s in sizes else "nothing"
                raise InputError(
                    "queries",
                    f"have {size} on {tokens} rows of layer {s}; expected "
                    f"{facts.n_features} features, as in the index.",
                )

    # ---- files --------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write index.safetensors and index.json; each is complete before it takes its place.

        Raises:
            InputError: the folder holds anything but an index, or cannot be written.
        """
        l0 = {kind: list(by_layer.values()) for kind, by_layer in self.corpus.l0.items()}
        write_index(Path(folder), packed(self.corpus), {**asdict(self.facts), "l0": l0})

    @classmethod
    def load(cls, folder: str | Path, vit: HookedViT, clt: CrossLayerTranscoder) -> RetrievalIndex:
        """Load an index that was saved for the same teacher and encoders.

        Raises:
            InputError: the folder holds no index, or one that is damaged or of another model or
                CLT.
        """
        check_fits(vit, clt)
        folder = Path(folder)
        values = read_facts(folder)
        with reading(folder / FACTS_FILE, "what `save` writes", problem="is not that of an index"):
            facts = made(IndexFacts, {f.name: values[f.name] for f in fields(IndexFacts)})
            l0 = {
                kind: dict(zip(facts.layers, values["l0"][kind], strict=True))
                for kind in facts.tokens
            }
            if not all(fits(each, float) for by_layer in l0.values() for each in by_layer.values()):
                raise ValueError("l0 holds other values than finite numbers")
            # a whole number in JSON is an int
            l0 = {kind: {s: float(each) for s, each in l0[kind].items()} for kind in l0}
            if not set(facts.layers) <= set(range(clt.config.n_layers)):
                raise ValueError(f"layers are {str(facts.layers)[:50]}")
        teacher = vit.identity()
        check_same(
            {
                "weights_sha256": teacher.weights_sha256,
                "activation": teacher.activation,
                "encoder_sha256": encoder_sha256(clt),
            },
            values,
            f"index {folder}, or another folder",
            {
                "weights_sha256": "of the model",
                "activation": "of the model",
                "encoder_sha256": "of the CLT",
            },
        )
        arrays = read_arrays(folder, values)
        corpus = Descriptors(
            *unpacked(
                arrays,
                facts.tokens,
                facts.layers,
                (facts.n_images, facts.n_features),
                facts.d_model,
            ),
            l0,
            facts.data,
            facts.split,
        )
        return cls(vit, clt, corpus, facts)


def own_rows(queries: ImageData, corpus: ImageData) -> Int[np.ndarray, " query"] | None:
    """The number in the corpus of every query where both are the same images, else None.

    Both may be cut to different lengths: queries beyond the corpus get -1. They are the same images
    if the first images of both, as many as both have, have the same `sampled_fingerprint`.
    """
    shared = range(min(len(queries), len(corpus)))
    images, others = (sampled_fingerprint(ImageSubset(data, shared)) for data in (queries, corpus))
    if images != others:
        return None
    rows = np.arange(len(queries))
    return np.where(rows < len(corpus), rows, -1)
