"""Surrogate faithfulness: how closely a ViT with a CLT in its MLPs' place answers like the ViT."""

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
from vit_clt.hooks.rows import rows_unread
from vit_clt.metrics import Metric
from vit_clt.readouts.base import Classifier
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

VERSIONS: tuple[Version, ...] = get_args(Version)
SIMILARITY_IMAGES = 5000
"""The most images whose pairwise similarities are ranked; the number of pairs is quadratic."""


@dataclass(frozen=True)
class SurrogateFaithfulness(Study):
    """All measures of the surrogate, and the same measures of both floors and of the ViT itself."""

    name = "faithfulness"

    measures: list[Quantity]
    values: dict[str, dict[Version, Interval]]
    """Values by measure and version; every version is compared with "original"."""
    by_template: pd.DataFrame
    """One row per prompt template: accuracies (top1, baseline, floor_mean, floor_zero) and mean KL
    from the unaltered model (kl, kl_floor_mean, kl_floor_zero). No rows if the readout is not the
    text tower."""
    layers: list[int]
    tokens: TokenKind
    inputs: Inputs
    readout: str
    """Name of the readout of all measures except the prompt measures."""
    data: str
    split: str | None
    seed: int
    n: int
    l0: float
    """Active features a token row and layer on these rows, teacher trajectory, over all sources."""
    no_op: bool
    """Whether these rows cannot reach the output (patch rows of the last layer, CLS pooling)."""

    def n_of(self, measure: str) -> int:
        """Number of images that a measure was taken on."""
        return min(self.n, SIMILARITY_IMAGES) if measure == "spearman" else self.n

    @property
    def layer_range(self) -> str:
        """The layers as text, "7-11" where they are consecutive, else "3 5"."""
        first, last = self.layers[0], self.layers[-1]
        if len(self.layers) > 1 and len(self.layers) == last - first + 1:
            return f"{first}-{last}"
        return " ".join(map(str, self.layers))

    def at(self, measure: str, version: Version = "surrogate") -> Interval:
        """The value of a measure for one version."""
        return self.values[measure][version]

    def to_frame(self) -> pd.DataFrame:
        """One row per measure, in fractions and nats, floors beside the surrogate."""
        rows = []
        for measure in self.measures:
            value = self.at(measure.name)
            row = {
                "layers": self.layer_range,
                "tokens": self.tokens,
                "inputs": self.inputs,
                "measure": measure.name,
                "unit": measure.unit,
                "value": value,
                "low": value.low,
                "high": value.high,
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
                "readout": self.readout,
                "prompt_templates": self.by_template["template"].tolist(),
                "no_op": self.no_op,
            },
        )

    def caption(self) -> str:
        """One sentence on what was compared, and on how many images."""
        return (
            f"{self.data}, N = {self.n} (similarities of {self.n_of('spearman')}), "
            f"{self.tokens} rows of layers {self.layer_range}, {self.inputs} inputs, readout: "
            f"{self.readout}, L0 {self.l0:.1f}"
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
        """A sentence on the brackets, and a warning where the rows cannot reach the output."""
        notes = ["in brackets 95 % bootstrap intervals over images"]
        return [*notes, "these rows cannot reach the output: a no-op"] if self.no_op else notes

    def metrics(self) -> list[Metric]:
        """Measures of the surrogate beside mean floor and baseline, then those of the floors."""
        metrics = []
        versions: tuple[Version, ...] = ("surrogate", "floor_mean", "floor_zero")
        for version in versions:
            for measure in self.measures:
                metrics.append(
                    self.at(measure.name, version).metric(
                        measure.name if version == "surrogate" else f"{version}_{measure.name}",
                        measure.unit,
                        self.n_of(measure.name),
                        self.at(measure.name, "floor_mean"),
                        self.at(measure.name, "original"),
                    )
                )
        return metrics

    def figure(self) -> go.Figure:
        """A panel per measure: the surrogate beside both floors, the unaltered model as a line."""
        from vit_clt.analysis.fit.faithfulness_figure import faithfulness_figure

        return faithfulness_figure(self)

    def page(self) -> str:
        """A page with the figure, all measures, and all prompt templates."""
        from vit_clt.analysis.fit.faithfulness_figure import faithfulness_report

        return faithfulness_report(self)


@torch.no_grad()
def surrogate_faithfulness(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    layers: int | Iterable[int] | None = None,
    tokens: TokenKind = "cls",
    inputs: Inputs = "stream",
    templates: Sequence[str | ZeroShot] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SurrogateFaithfulness:
    """Compare the model with a CLT in its MLPs' place, and two floors, with the unaltered model.

    The floors have the same MLP rows at zero, or at their mean over `data` at the same position.
    The result does not depend on the order or the batches of the images: draws follow their pixels.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        classifier: the readout of all measures except the prompt measures.
        layers: layers replaced; all by default.
        tokens: kind of rows replaced.
        inputs: where codes come from, "stream" or "teacher".
        templates: prompts that the prompt measures compare, at least two, or one classifier for
            each prompt, which several studies of one teacher can share. Default: the 18 CIFAR
            templates if `classifier` is the text tower; otherwise none, and no prompt measures.
        seed: seed of the bootstrap, and of the choice of images whose similarities are ranked.
        progress: show a progress bar.

    Raises:
        InputError: an argument is out of range, labels have no names, the CLT belongs to another
            model, or embeddings become NaN or infinite.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    check_fits(vit, clt)
    n_layers = vit.cfg.n_layers
    layers = layer_list(range(n_layers) if layers is None else layers, n_layers)
    token_rows(tokens, vit.cfg.rows)
    if templates is None:
        templates = CIFAR_TEMPLATES if isinstance(classifier, ZeroShot) else ()
    if len(templates) == 1 or (not templates and isinstance(classifier, ZeroShot)):
        raise InputError(
            "templates",
            f"has {len(templates)} of them; expected at least 2, which prompt "
            "sensitivity compares.",
        )
    prompts = [
        template
        if isinstance(template, ZeroShot)
        else ZeroShot(vit, classifier.class_names, [template])
        for template in templates
    ]
    gathered = gather_embeddings(
        vit,
        clt,
        data,
        classifier,
        layers=layers,
        tokens=tokens,
        inputs=inputs,
        seed=seed,
        progress=progress,
    )
    k = min(5, len(classifier.class_names))
    measures = quantities(k, len(classifier.class_names), prompts=bool(prompts))
    # All versions share one bootstrap, so that their differences are paired.
    columns = [per_image(gathered, version, classifier, prompts, k) for version in VERSIONS]
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
        # Ranking takes seconds, so the ranks of the unaltered model are reused.
        unaltered = version == "original"
        version_ranks = ranks if unaltered else similarity_ranks(embeddings[:SIMILARITY_IMAGES])
        numbers["spearman"][version] = Interval(float(pearson(ranks, version_ranks)))
    return SurrogateFaithfulness(
        measures=measures,
        values=numbers,
        by_template=_by_template([prompt.templates[0] for prompt in prompts], means),
        layers=layers,
        tokens=tokens,
        inputs=inputs,
        readout=classifier.name,
        data=data.name,
        split=data.split,
        seed=seed,
        n=len(gathered),
        l0=gathered.l0,
        no_op=rows_unread(tokens, layers[0], n_layers, vit.cfg.pools_cls),
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
