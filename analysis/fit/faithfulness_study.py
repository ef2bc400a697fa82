"""Surrogate faithfulness: how closely a ViT with a CLT in its MLPs' place follows the original."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import torch

from vit_clt.analysis.fit.faithfulness_columns import (
    LEADING,
    Quantity,
    averages,
    per_image,
    quantities,
)
from vit_clt.analysis.fit.surrogate_embeddings import Version, gather_embeddings
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.analysis.stats.similarity import linear_cka, pearson, similarity_ranks
from vit_clt.choices import Inputs, TokenKind
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.data.prompts import CIFAR_TEMPLATES
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, layer_list, token_rows
from vit_clt.hooks.rows import patch_rows_unread
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot

if TYPE_CHECKING:
    import plotly.graph_objects as go

VERSIONS: tuple[Version, ...] = get_args(Version)
SIMILARITY_IMAGES = 5000
"""Images whose pairwise similarities are ranked, at most: pairs grow with their square."""


@dataclass(frozen=True)
class SurrogateFaithfulness(Study):
    """Every measure of the surrogate, and by the same code of both floors and the model itself."""

    name = "faithfulness"

    measures: list[Quantity]
    values: dict[str, dict[Version, Interval]]
    """Per measure and version, each version against "original"."""
    by_template: pd.DataFrame
    """One row per prompt template: accuracies (top1, baseline, floor_mean, floor_zero) and mean KL
    against the unaltered model (kl, kl_floor_mean, kl_floor_zero)."""
    layers: list[int]
    tokens: TokenKind
    inputs: Inputs
    templates: str
    """Prompts of every measure but the prompt measures."""
    data: str
    split: str | None
    seed: int
    n: int
    l0: float
    """Active features a token and layer on these rows, teacher trajectory, over all sources."""
    no_op: bool
    """Whether these rows cannot reach the output (patch rows of the last layer, CLS pooling)."""

    def n_of(self, measure: str) -> int:
        """Images a measure was taken on."""
        return min(self.n, SIMILARITY_IMAGES) if measure == "spearman" else self.n

    @property
    def layer_range(self) -> str:
        """The layers as text, "7-11" where they are consecutive, else "3 5"."""
        first, last = self.layers[0], self.layers[-1]
        if len(self.layers) > 1 and len(self.layers) == last - first + 1:
            return f"{first}-{last}"
        return " ".join(map(str, self.layers))

    def at(self, measure: str, version: Version = "surrogate") -> Interval:
        """One number."""
        return self.values[measure][version]

    def to_frame(self) -> pd.DataFrame:
        """One row per measure, in fractions and nats, floors beside the surrogate."""
        rows = []
        for measure in self.measures:
            found = self.at(measure.name)
            row = {
                "layers": self.layer_range,
                "tokens": self.tokens,
                "inputs": self.inputs,
                "measure": measure.name,
                "unit": measure.unit,
                "value": found,
                "low": found.low,
                "high": found.high,
                "n": self.n_of(measure.name),
                "baseline": self.at(measure.name, "original"),
            }
            floors: tuple[Version, ...] = ("floor_mean", "floor_zero")
            for version in floors:
                row |= self.at(measure.name, version).columns(version)
            rows.append(row)
        return pd.DataFrame(rows)

    def facts(self) -> Facts:
        """The images, and what was replaced on them."""
        return Facts(
            self.data,
            self.n,
            self.tokens,
            self.inputs,
            self.l0,
            self.split,
            seed=self.seed,
            more={
                "layers": self.layers,
                "templates": self.templates,
                "prompt_templates": self.by_template["template"].tolist(),
                "no_op": self.no_op,
            },
        )

    def caption(self) -> str:
        """What was compared, and on how many images."""
        return (
            f"{self.data}, N = {self.n} (similarities of {self.n_of('spearman')}), "
            f"{self.tokens} rows of layers {self.layer_range}, {self.inputs} inputs, templates: "
            f"{self.templates}, L0 {self.l0:.1f}"
        )

    def shown(self) -> pd.DataFrame:
        """One row per measure, as text: the surrogate with its interval, the model, both floors."""
        return pd.DataFrame(
            {
                "measure": m.label,
                "with the CLT": m.text(self.at(m.name)),
                "unaltered": m.text(Interval(self.at(m.name, "original"))),
                "MLP rows at their mean": m.text(self.at(m.name, "floor_mean")),
                "MLP rows at zero": m.text(self.at(m.name, "floor_zero")),
            }
            for m in self.measures
        )

    def notes(self) -> list[str]:
        """What the brackets are, and whether there was anything to measure."""
        notes = ["in brackets 95 % bootstrap intervals over images"]
        return [*notes, "these rows cannot reach the output: a no-op"] if self.no_op else notes

    def metrics(self) -> list[Metric]:
        """The surrogate's numbers beside mean floor and baseline, then the floors' own."""
        found = []
        shown: tuple[Version, ...] = ("surrogate", "floor_mean", "floor_zero")
        for version in shown:
            for measure in self.measures:
                found.append(
                    self.at(measure.name, version).metric(
                        measure.name if version == "surrogate" else f"{version}_{measure.name}",
                        measure.unit,
                        self.n_of(measure.name),
                        self.at(measure.name, "floor_mean"),
                        self.at(measure.name, "original"),
                    )
                )
        return found

    def figure(self) -> go.Figure:
        """A panel per measure: the surrogate beside both floors, the unaltered model as a line."""
        from vit_clt.analysis.fit.faithfulness_figure import faithfulness_figure

        return faithfulness_figure(self)

    def page(self) -> str:
        """The figure, every number, and every prompt template."""
        from vit_clt.analysis.fit.faithfulness_figure import faithfulness_report

        return faithfulness_report(self)


@torch.no_grad()
def surrogate_faithfulness(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    *,
    layers: int | Iterable[int] | None = None,
    tokens: TokenKind = "cls",
    inputs: Inputs = "stream",
    templates: Sequence[str | ZeroShot] = CIFAR_TEMPLATES,
    seed: int = 0,
    progress: bool = False,
) -> SurrogateFaithfulness:
    """Compare the model with a CLT in its MLPs' place, and two floors, to the unaltered model.

    The floors have the same MLP rows at zero, or at their mean over `data` at the same position.
    Neither the order of the images nor their batches matter: every draw goes by their pixels.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        zs: the zero-shot classifier of every measure but the prompt measures.
        layers: layers replaced; all by default.
        tokens: rows replaced.
        inputs: where codes come from, "stream" or "teacher".
        templates: prompts that the prompt measures compare, at least two; or the classifiers of
            one template each, already made, as several studies of one teacher share them.
        seed: of the bootstrap, and of the images whose similarities are ranked.
        progress: show a progress bar.

    Raises:
        InputError: an argument out of range, labels without names, a CLT of another model, or one
            that makes embeddings NaN or infinite.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    check_fits(vit, clt)
    n_layers = vit.cfg.n_layers
    chosen = layer_list(range(n_layers) if layers is None else layers, n_layers)
    token_rows(tokens, vit.cfg.has_cls)
    if len(templates) < 2:
        raise InputError(
            "templates",
            f"has {len(templates)} of them; expected at least 2, which prompt "
            "sensitivity compares.",
        )
    heads = [
        each if isinstance(each, ZeroShot) else ZeroShot(vit, zs.class_names, [each])
        for each in templates
    ]
    gathered = gather_embeddings(
        vit,
        clt,
        data,
        zs,
        layers=chosen,
        tokens=tokens,
        inputs=inputs,
        seed=seed,
        progress=progress,
    )
    k = min(5, len(zs.class_names))
    measures = quantities(k, len(zs.class_names))
    # one bootstrap for all versions, so that their differences are paired
    columns = [per_image(gathered, version, zs, heads, k) for version in VERSIONS]
    values = np.concatenate(columns, axis=1)
    means, samples = (
        dict(zip(VERSIONS, np.split(x, len(VERSIONS), axis=-1), strict=True))
        for x in (values.mean(0, keepdims=True), bootstrap_means(values, seed))
    )
    ranks = similarity_ranks(gathered.versions["original"][:SIMILARITY_IMAGES])
    numbers: dict[str, dict[Version, Interval]] = {measure.name: {} for measure in measures}
    for version in VERSIONS:
        points = averages(means[version], means["original"], k)
        draws = averages(samples[version], samples["original"], k)
        for name, point in points.items():
            numbers[name][version] = Interval.of(point[0], draws[name])
        embeddings = gathered.versions[version]
        cka = linear_cka(gathered.versions["original"], embeddings)
        numbers["cka"][version] = Interval(cka)
        # ranking takes seconds: the model's own once
        own = version == "original"
        others = ranks if own else similarity_ranks(embeddings[:SIMILARITY_IMAGES])
        numbers["spearman"][version] = Interval(float(pearson(ranks, others)))
    return SurrogateFaithfulness(
        measures=measures,
        values=numbers,
        by_template=_by_template([head.templates[0] for head in heads], means),
        layers=chosen,
        tokens=tokens,
        inputs=inputs,
        templates=zs.name,
        data=data.name,
        split=data.split,
        seed=seed,
        n=len(gathered),
        l0=gathered.l0,
        no_op=tokens == "patch" and patch_rows_unread(chosen[0], n_layers, vit.cfg.pools_cls),
    )


def _by_template(templates: list[str], means: dict[Version, np.ndarray]) -> pd.DataFrame:
    halves = {v: np.split(x[0, LEADING:], 2) for v, x in means.items()}
    frame = {"template": templates, "top1": halves["surrogate"][0]}
    frame["baseline"] = halves["original"][0]
    floors: tuple[Version, ...] = ("floor_mean", "floor_zero")
    frame |= {version: halves[version][0] for version in floors}
    frame["kl"] = halves["surrogate"][1]
    frame |= {f"kl_{version}": halves[version][1] for version in floors}
    return pd.DataFrame(frame)
