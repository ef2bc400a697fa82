"""`vit-clt retrieve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vit_clt.choices import SearchBackend, TokenKind
from vit_clt.cli.options import (
    CLTOptions,
    Command,
    SeedOptions,
    StudyOptions,
    layer_numbers,
    print_table,
)
from vit_clt.errors import InputError

if TYPE_CHECKING:
    from vit_clt.analysis import RetrievalIndex
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class Retrieve(CLTOptions, StudyOptions, SeedOptions):
    """Which images of a corpus look alike to each layer's codes, and have they one class?

    Example: vit-clt retrieve --clt out/clt --data digits --query 0 5 17 --out out/retrieval
    """

    other_names: ClassVar = {**Command.other_names, "backend": "search"}

    corpus: str | None = None
    """Images to search among, a form as of --data; default: the train split of --data."""
    corpus_limit: int | None = None
    """First N rows of the corpus only."""
    tokens: tuple[TokenKind, ...] = ("cls", "patch")
    """Rows whose codes are averaged, one kind or several."""
    layers: str | None = None
    """Source layers, e.g. 7-11 or 0,4,7-11 (inclusive); default: every layer."""
    query: tuple[int, ...] = (0, 1, 2)
    """Rows of --data whose nearest images are shown; all rows count for class consistency."""
    top: int = 5
    """Nearest images a query and layer."""
    index: Path | None = None
    """Folder of the index: reused where there is one, else built and kept there."""
    search: SearchBackend = "exact"
    """Compare every image, or let faiss propose (needs the extra "faiss")."""

    untrained: bool = False
    """Also by the codes of an untrained CLT of the same shape; indexes the corpus once more."""

    def run(self) -> None:
        """Index, search, draw, and report."""
        import pandas as pd

        from vit_clt.analysis import RetrievalIndex, class_consistency
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.analysis.reporting.style import ROW_NAMES
        from vit_clt.analysis.retrieval.descriptors import untrained
        from vit_clt.analysis.retrieval.figures import consistency_figure, retrieval_figure
        from vit_clt.analysis.retrieval.index import own_rows
        from vit_clt.analysis.retrieval.neighbours import neighbour_frame
        from vit_clt.analysis.retrieval.report import retrieval_report
        from vit_clt.analysis.stats.nearest import check_faiss
        from vit_clt.data.images import ImageRows
        from vit_clt.metrics import metrics_json

        if self.search == "faiss":
            check_faiss()
        folder = self.study_folder("retrieval", "neighbours")
        vit, clt, data = self.load_all(self.device)
        for row in self.query:
            if not 0 <= row < len(data):
                raise InputError(
                    "query", f"is {row}; expected rows from 0 to {len(data) - 1} of {data.name}."
                )
        corpus = self.load_corpus(vit, data)
        index = self.load_index(vit, clt, corpus)
        own = own_rows(data, corpus)
        described = index.describe(data, progress=True)
        control = None
        if self.untrained:
            other = RetrievalIndex.build(
                vit,
                untrained(clt, self.seed),
                corpus,
                tokens=index.facts.tokens,
                layers=index.facts.layers,
                progress=True,
            )
            control = other, other.describe(data, progress=True)
        result = class_consistency(
            index,
            described,
            k=self.top,
            control=control,
            own_rows=own,
            backend=self.search,
            seed=self.seed,
            progress=True,
        )
        rows = list(self.query)
        tables, grids = [], []
        for tokens in self.tokens:
            found = index.search(
                described.take(rows),
                self.top,
                tokens=tokens,
                own_rows=None if own is None else own[rows],
                backend=self.search,
            )
            table = neighbour_frame(found, rows, described.labels[rows], data.class_names)
            tables.append(table.assign(tokens=tokens))
            for i, row in enumerate(rows):
                alone = {s: neighbours.of([i]) for s, neighbours in found.items()}
                query = ImageRows(data, [row])
                grids.append(
                    retrieval_figure(index, alone, query, corpus, rows=[row], tokens=tokens)
                )
        frame = result.to_frame()
        own_text = "none is taken from the corpus"
        if own is not None:
            own_text = "rows of the corpus, each left out of its own neighbours"
        facts = {
            "Model": f"{vit.cfg.model}, {vit.cfg.n_layers} layers of width {vit.cfg.d_model}",
            "CLT": f"{self.clt}, {clt.config.n_features} features a layer",
            "Queries": f"{data.name}, N = {len(data)}; {own_text}",
            "Corpus": f"{corpus.name}, N = {len(corpus)}",
            "Search": f"{index.facts.similarity} similarity, {self.search}, top {self.top}; codes "
            "on the teacher trajectory",
            "Seed": f"{self.seed} (bootstrap over queries)",
        }
        caption = (
            f"{data.name}, N = {len(data)}, corpus: {corpus.name}, N = {len(corpus)}; share of the "
            f"{self.top} nearest images with the query's class in %, {index.facts.similarity}, "
            f"teacher trajectory, L0 {frame['l0'].mean():.1f} a token row"
        )
        compared = {"codes": "codes", "inputs": "plain x", "untrained": "untrained CLT"}
        compared = {name: title for name, title in compared.items() if name in frame}
        compared["chance"] = "chance"
        shown = pd.DataFrame(
            [
                (
                    f"{ROW_NAMES[r['tokens']]}, layer {r['layer']}",
                    *(f"{100 * r[name]:.1f}" for name in compared),
                    f"{r['l0']:.1f} / {r['active']:.1f}",
                )
                for r in frame.to_dict("records")
            ],
            columns=["rows, layer", *compared.values(), "active: row / pooled"],
        )
        folder.open()
        folder.write("neighbours.csv", pd.concat(tables).to_csv(index=False))
        write_study(
            folder,
            "retrieval",
            consistency_figure(result),
            frame,
            caption,
            shown=shown,
            page=retrieval_report(result, grids, facts),
            png=self.png,
        )
        context = {
            "command": "retrieve",
            "data": data.name,
            "split": data.split,
            "tokens": " ".join(self.tokens),
            "trajectory": "teacher",
            "l0": float(frame["l0"].mean()),
            "seed": self.seed,
            "corpus": corpus.name,
            "n_corpus": len(corpus),
            "top": self.top,
            "similarity": index.facts.similarity,
            "search": self.search,
            "own_rows": own_text,
            "floor": "chance: the share of the corpus with the query's label",
            "baseline": "the same by the plain x_s",
        }
        folder.write("metrics.json", metrics_json(result.metrics(), **context))
        print(caption)
        print_table(shown)
        print(f"written to {folder.path}")

    def load_corpus(self, vit: HookedViT, data: ImageData) -> ImageData:
        """The images to search among, of the queries' classes."""
        from vit_clt.data.forms import load_data

        if self.corpus is None and data.split is None:
            raise InputError(
                "corpus",
                f"is missing; {data.name} has no train split to search, expected --corpus "
                "with a form of data.",
            )
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
