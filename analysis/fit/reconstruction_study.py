"""How well y^ reconstructs y: cosine, MSE, R^2, L0 and dead features, by layer and token kind.

Over the N rows of a token kind at one layer, on the teacher trajectory (or on passes of the teacher
with interventions):

    cosine       mean of cos(y, y^)
    mse          mean of ||y - y^||^2 / d, in squared raw units
    r2           1 - sum ||y - y^||^2 / sum ||y - mean||^2, the mean over those N rows
    r2_position  r2 around the mean over images at each position
    r2_typical   r2 without the 1 % of rows with the largest ||y|| (rounded down), around the mean
                 of the other rows; outlier tokens dominate both sums of r2
    fvu          1 - r2
    cross_layer  1 - centred C(l->l): share of y^ that features of earlier layers decode
    l0, dead     active features a row; share of features that are active on none of those rows

The floors are what the mean alone achieves: r2 0, `cosine_floor`, `mse_floor`. Names and the plain
forms are the paper's; means, positions, typical rows and the cross-layer share are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from vit_clt.analysis.fit.reconstruction_sums import (
    FitSums,
    OutputSums,
    fit_frame,
    survey_outputs,
)
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.choices import TokenKind
from vit_clt.data.fingerprints import image_keys
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, token_rows
from vit_clt.hooks.activations import capture
from vit_clt.metrics import Metric
from vit_clt.progress import Progress
from vit_clt.training.interventions import capture_intervened
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHOWN = {
    ("r2", "cls"): "R2 CLS",
    ("r2", "patch"): "R2 patch",
    ("r2_typical", "patch"): "R2 patch, typical",
    ("r2_position", "patch"): "R2 patch by position",
    ("cosine", "cls"): "cos CLS",
    ("cosine", "patch"): "cos patch",
    ("cross_layer", "all"): "cross-layer",
}


@dataclass(frozen=True)
class Reconstruction(Study):
    """How well one CLT reconstructs MLP outputs, and further CLTs that are compared with it.

    Raises:
        InputError: a compared CLT was measured on other images.
    """

    name = "reconstruction"

    frame: pd.DataFrame
    """One row per layer and token kind. Columns: layer, tokens, cosine, cosine_low, cosine_high,
    cosine_floor, mse, mse_floor, r2, r2_low, r2_high, r2_position, r2_typical, fvu, l0, dead,
    cross_layer, n_images, as defined at the top of the module; NaN where y, or for cross_layer y^,
    does not vary. Intervals are 95 % bootstrap over images, around the mean of all images; NaN for
    a single image."""
    data: str
    seed: int
    """Seed of the bootstrap, and of interventions."""
    split: str | None = None
    interventions: bool = False
    """Whether outputs of MLPs were overwritten in the passes that were measured."""
    clt: str = "CLT"
    """Name of the CLT."""
    compared: Mapping[str, Reconstruction] = field(default_factory=dict)
    """Reconstruction of other CLTs, by name; tables and figures show them after this one."""

    def __post_init__(self) -> None:
        measured_on = {
            f"{other.data} with N = {other.n}, {other.trajectory} passes"
            for other in self.by_clt().values()
        }
        if len(measured_on) > 1:
            listed = ", ".join(sorted(measured_on))
            raise InputError("compared", f"is of {listed}; expected one set of passes.")

    @property
    def trajectory(self) -> str:
        """Where x and y come from: "teacher", or "intervened" passes of the teacher."""
        return "intervened" if self.interventions else "teacher"

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.frame["n_images"].iloc[0])

    def by_clt(self) -> dict[str, Reconstruction]:
        """This reconstruction and those compared with it, by the name of their CLT."""
        return {self.clt: self, **self.compared}

    def mean(self, tokens: TokenKind, column: str = "r2") -> float:
        """Mean of a column of `frame` over layers, for one token kind."""
        return float(self.frame.loc[self.frame["tokens"] == tokens, column].mean())

    def to_frame(self) -> pd.DataFrame:
        """The rows of `frame` of every CLT, with the CLT's name as the first column."""
        frames = {name: result.frame for name, result in self.by_clt().items()}
        return pd.concat(frames, names=["clt"]).reset_index("clt").reset_index(drop=True)

    def facts(self) -> Facts:
        """The images, and the L0 of every CLT."""
        return Facts(
            self.data,
            self.n,
            "cls patch all",
            self.trajectory,
            self.mean("all", "l0"),
            self.split,
            seed=self.seed,
            more={
                "clt": self.clt,
                "compared": {
                    name: {"l0": other.mean("all", "l0")} for name, other in self.compared.items()
                },
                "floor": "predicting the mean of the same rows",
            },
        )

    def caption(self) -> str:
        """One sentence on what was measured, with the L0 of every CLT."""
        l0s = [f"{name} L0 {r.mean('all', 'l0'):.1f}" for name, r in self.by_clt().items()]
        return (
            f"{self.data}, N = {self.n}, {self.trajectory} trajectory, {', '.join(l0s)}, "
            f"seed {self.seed}; predicting the mean has R2 0"
        )

    def shown(self) -> pd.DataFrame:
        """One row per CLT and layer, as text."""
        tables = []
        for name, result in self.by_clt().items():
            wide = result.frame.pivot(index="layer", columns="tokens")
            columns = {column: title for column, title in _SHOWN.items() if column in wide}
            table = wide[list(columns)].set_axis(list(columns.values()), axis=1)
            # Adding 0.0 turns the -0.000 of layer 0, which has no other source, into 0.000.
            table = (table.round(3) + 0.0).map("{:.3f}".format).reset_index()
            table.insert(0, "clt", name)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def metrics(self) -> list[Metric]:
        """R^2, cosine and MSE of every layer and token kind, with what the mean alone achieves.

        Metrics of a compared CLT begin with its name.
        """
        metrics = []
        prefixes = {"": self} | {f"{name}_": other for name, other in self.compared.items()}
        rows = [(p, r) for p, result in prefixes.items() for r in result.frame.itertuples()]
        for prefix, r in rows:
            place, n = f"{r.tokens}_layer_{r.layer}", r.n_images
            values = (
                ("r2", r.r2, "fraction", n, r.r2_low, r.r2_high, 0.0),
                ("r2_position", r.r2_position, "fraction", n, None, None, 0.0),
                ("r2_typical", r.r2_typical, "fraction", n, None, None, 0.0),
                ("cosine", r.cosine, "fraction", n, r.cosine_low, r.cosine_high, r.cosine_floor),
                ("mse", r.mse, "raw^2", n, None, None, r.mse_floor),
                ("cross_layer", r.cross_layer, "fraction", n),
                ("l0", r.l0, "count", n),
            )
            metrics += [Metric(f"{prefix}{name}_{place}", *rest) for name, *rest in values]
            if r.tokens == "all":
                metrics.append(Metric(f"{prefix}dead_layer_{r.layer}", r.dead, "fraction", n))
        return metrics

    def figure(self) -> go.Figure:
        """Every measure per layer, the CLTs overlaid."""
        from vit_clt.analysis.fit.reconstruction_figure import reconstruction_figure

        return reconstruction_figure(self)


def reconstruction(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor | Iterable[Any],
    *,
    seed: int = 0,
    progress: bool = False,
) -> Reconstruction:
    """Measure how well one CLT reconstructs MLP outputs; see `reconstructions`."""
    return reconstructions(vit, {"CLT": clt}, images, seed=seed, progress=progress)


@torch.no_grad()
def reconstructions(
    vit: HookedViT,
    clts: Mapping[str, CrossLayerTranscoder],
    images: ImageData | Tensor | Iterable[Any],
    *,
    interventions: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Reconstruction:
    """Measure how well several CLTs of one teacher reconstruct the same activations.

    The result is that of the first CLT, with the others as `compared`. The ViT runs over the images
    twice, first for the means of y, however many CLTs there are. The result does not depend on the
    order or the batches of the images: the draws of the bootstrap follow their pixels. With
    interventions it does, as donors are images of the same batch.

    Args:
        vit: the teacher.
        clts: its transcoders, by name.
        images: ImageData, a tensor "image 3 height width", or batches.
        interventions: measure on passes in which outputs of a range of MLPs are overwritten, drawn
            for every image as `vit_clt.training.interventions` does; y is still MLP_l(x_l).
        seed: seed of the bootstrap, which draws the same images for every CLT.
        progress: show progress bars.

    Raises:
        InputError: a CLT does not fit the model, there are no CLTs or no images, or a batch of an
            altered pass would hold one image.
    """
    if not clts:
        raise InputError("clts", "is empty; expected at least one CLT.")
    for clt in clts.values():
        check_fits(vit, clt)
    data = as_image_data(images)
    check_prepared(vit, data)
    if interventions and len(data) % data.batch_size == 1:
        raise InputError(
            "limit",
            f"leaves {len(data)} images in batches of {data.batch_size}, the last of one image, "
            "which has no other to take outputs from; expected one image fewer or more.",
        )
    rows = {tokens: token_rows(tokens, vit.cfg.rows) for tokens in vit.cfg.rows.kinds}
    captured = partial(capture_intervened, seed=seed) if interventions else capture
    survey = survey_outputs(vit, data, rows, captured=captured, progress=progress)
    outputs = {tokens: OutputSums(survey, tokens) for tokens in rows}
    fits = {name: FitSums(clt, survey) for name, clt in clts.items()}
    keys: list[bytes] = []
    n_batches = -(-len(data) // data.batch_size)
    for batch, labels in Progress(data, "reconstruct", n_batches, disable=not progress):
        keys += image_keys(batch, labels, seed)
        activations = captured(vit, batch.to(survey.mean.device))
        typical = {tokens: sums.add(activations.y) for tokens, sums in outputs.items()}
        for fit in fits.values():
            fit.add(activations, typical)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    results = {
        name: Reconstruction(
            fit_frame(survey, outputs, fit, order, seed),
            data.name,
            seed,
            data.split,
            interventions,
            name,
        )
        for name, fit in fits.items()
    }
    first = results.pop(next(iter(results)))
    return replace(first, compared=results)
