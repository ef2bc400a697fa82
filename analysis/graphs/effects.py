"""Direct effects: a class logit, taken apart exactly into the terms that sum to it.

    <e/||e||, direction> = sum of features + errors + patches + bias

with the attention patterns, all LayerNorm scales and ||e|| held at their clean values. e is the
image's embedding; the terms are those of `Sources`, on the teacher trajectory. A term is a direct
effect: it goes through the residual stream and attention, not through the activations of other
features. For language models the form is that of attribution patching and circuit-tracer; for ViTs,
and with a formula for each kind of bias, it is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.graphs.sources import SourceEffects, Sources
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.tables import rounded
from vit_clt.choices import Norms
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.metrics import Metric
from vit_clt.progress import Progress
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class DirectEffects(Study):
    """Direct effects on <e/||e||, direction> of each image, in its unit (logits for a class)."""

    name = "direct_effects"

    logit: Float[Tensor, " image"]
    """<e/||e||, direction> as the model computes it; the terms sum to it if norms are held."""
    norms: Norms
    features: pd.DataFrame
    """One row per active feature: image, layer, token, feature, activation, effect."""
    terms: Float[Tensor, "image target source token"]
    """<c_{s->l}, G_l>: what source layer s adds by writing at layer l; 0 for l < s."""
    errors: Float[Tensor, "image layer token"]
    """<y_l - y^_l, G_l>: what the reconstruction error of layer l adds."""
    patches: Float[Tensor, "image patch"]
    """What the patch embeddings add through the residual stream and attention alone."""
    bias: pd.DataFrame
    """One row per image and part: image, part, layer (b_dec and attention), effect."""
    model: str
    """Name of the ViT."""

    @property
    def by_source(self) -> Float[Tensor, "image source"]:
        """Effects of each source layer, summed over tokens and the layers written to."""
        return self.terms.sum((1, 3))

    def facts(self) -> Facts:
        """The number of images, the L0 on them, and what was held."""
        return Facts(
            None,
            len(self.logit),
            "all",
            "teacher",
            len(self.features) / self.errors[..., None].numel(),
            more={"model": self.model, "norms": self.norms},
        )

    def caption(self) -> str:
        """The images, the model, L0, and what was held."""
        return (
            f"N = {len(self.logit)}, model {self.model}, L0 {self.facts().l0:.1f}; direct effects "
            f"in logits, norms {self.norms}, all rows, teacher trajectory"
        )

    def summary(self) -> pd.DataFrame:
        """One row per image: its logit, and the sums of the four kinds of terms."""
        return pd.DataFrame(
            {
                "image": range(len(self.logit)),
                "logit": self.logit.tolist(),
                "features": [float(terms.sum()) for terms in self.terms],
                "errors": [float(errors.sum()) for errors in self.errors],
                "patches": [float(patches.sum()) for patches in self.patches],
                "bias": self.bias.groupby("image")["effect"].sum().to_numpy(),
            }
        )

    def shown(self) -> pd.DataFrame:
        """`summary` to three decimals."""
        return rounded(self.summary())

    def metrics(self) -> list[Metric]:
        """The logit of each image, and its parts beside it."""
        return [
            metric
            for r in self.summary().to_dict("records")
            for metric in logit_metrics(f"image_{r['image']}", r)
        ]

    def figure(self) -> go.Figure:
        """Direct effects as bars, by the sources that they come from."""
        from vit_clt.analysis.graphs.effects_figure import direct_effects_figure

        titles = [f"image {i}" for i in range(len(self.logit))]
        return direct_effects_figure(self, titles, f"N = {len(self.logit)}, model {self.model}")

    def to_frame(self) -> pd.DataFrame:
        """One row per term; with norms held the effects of an image sum to its logit.

        Columns: image, kind ("source", "error", "patch", "bias"), part (of the bias), layer (the
        source's, or the error's), target (written to), token, effect. A source's features are
        summed.
        """
        rows = []
        for i in range(len(self.logit)):
            rows += self._rows(i)
        whole_numbers = ["layer", "target", "token"]
        return pd.DataFrame(rows).astype(dict.fromkeys(whole_numbers, "Int64"))

    def _rows(self, i: int) -> list[dict[str, Any]]:
        n_layers, n_tokens = self.errors.shape[1:]
        nothing = {"image": i, "part": None, "layer": None, "target": None, "token": None}
        terms, errors = self.terms[i].tolist(), self.errors[i].tolist()
        rows = [
            nothing
            | {"kind": "source", "layer": s, "target": l, "token": t, "effect": terms[l][s][t]}
            for l in range(n_layers)
            for s in range(l + 1)
            for t in range(n_tokens)
        ]
        rows += [
            nothing | {"kind": "error", "layer": l, "token": t, "effect": errors[l][t]}
            for l in range(n_layers)
            for t in range(n_tokens)
        ]
        rows += [
            nothing | {"kind": "patch", "token": 1 + p, "effect": effect}
            for p, effect in enumerate(self.patches[i].tolist())
        ]
        bias = self.bias[self.bias["image"] == i].to_dict("records")
        return rows + [nothing | {"kind": "bias"} | row for row in bias]


def logit_metrics(name: str, row: Mapping[str, Any], floor: float | None = None) -> list[Metric]:
    """The logit and its parts in a row of `DirectEffects.summary`, as metrics of one image."""
    parts = ("features", "errors", "patches", "bias")
    return [
        Metric(f"{name}_logit", row["logit"], "logits", 1, floor=floor),
        *(Metric(f"{name}_{p}", row[p], "logits", 1, baseline=row["logit"]) for p in parts),
    ]


def class_direction(
    zs: ZeroShot, label: int, contrast: int | None = None
) -> Float[Tensor, " d_embed"]:
    """The direction d for which <e/||e||, d> is the logit of `label`, minus that of `contrast` if
    one is given.

    logit_scale * (w_label - w_contrast), w being the classifier's columns.

    Raises:
        InputError: a class does not exist, or `contrast` is `label`.
    """
    n = len(zs.class_names)
    for name, value in (("target", label), ("contrast", contrast)):
        if value is not None and not 0 <= value < n:
            raise InputError(name, f"is class {value}; expected one from 0 to {n - 1}.")
    if label == contrast:
        raise InputError("contrast", f"is class {contrast}, the target itself; expected another.")
    column = zs.weights[:, label]
    if contrast is not None:
        column = column - zs.weights[:, contrast]
    return zs.logit_scale * column


def direct_effects(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: Float[Tensor, "image 3 height width"],
    direction: Float[Tensor, "*image d_embed"],
    *,
    norms: Norms = "held",
    progress: bool = False,
) -> DirectEffects:
    """Direct effects on <e/||e||, direction>, image by image.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        images: images in the preprocessing of the model.
        direction: one for all images, or one for each; `class_direction` gives that of a class.
        norms: held, so that the terms sum to the logit, or differentiated, so that they are the
            first order of what a small change does and do not (`vit_clt.hooks.passes.frozen`).
        progress: show a progress bar.

    Raises:
        InputError: the CLT is of another model, the model does not pool CLS, there are no images,
            or there is not one direction per image.
    """
    check_fits(vit, clt)
    if not len(images):
        raise InputError("images", "is empty; expected at least one.")
    if direction.ndim not in (1, 2) or (direction.ndim == 2 and len(direction) != len(images)):
        raise InputError(
            "direction",
            f"has shape {tuple(direction.shape)}; expected (d_embed,) or "
            f"({len(images)}, d_embed), one an image.",
        )
    bar = Progress(images, "direct effects", unit=" images", disable=not progress)
    return gather_effects(
        (Sources(vit, clt, image) for image in bar), direction.expand(len(images), -1), norms
    )


def gather_effects(
    sources: Iterable[Sources],
    directions: Iterable[Float[Tensor, " d_embed"]],
    norms: Norms = "held",
) -> DirectEffects:
    """Direct effects of the sources of each image on its direction.

    Args:
        sources: the sources of each image.
        directions: the direction in the embedding space that is read, one for each image.
        norms: what is done with norms, as in `direct_effects`.
    """
    logits, terms, effects, features = [], [], [], []
    bias: list[dict[str, Any]] = []
    model = ""
    for i, (image_sources, direction) in enumerate(zip(sources, directions, strict=True)):
        readout = image_sources.frozen.read_output(direction, norms=norms)
        source_effects = image_sources.effects(readout)
        logits.append(image_sources.logit(direction))
        terms.append(image_sources.terms(readout))
        features.append(_feature_frame(i, image_sources, source_effects))
        bias += _bias_rows(i, source_effects)
        effects.append(source_effects)
        model = image_sources.frozen.vit.cfg.model
    return DirectEffects(
        logit=torch.stack(logits),
        norms=norms,
        features=pd.concat(features, ignore_index=True),
        terms=torch.stack(terms),
        errors=torch.stack([image_effects.errors for image_effects in effects]),
        patches=torch.stack([image_effects.patches for image_effects in effects]),
        bias=pd.DataFrame(bias),
        model=model,
    )


def _feature_frame(image: int, sources: Sources, effects: SourceEffects) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image": image,
            "layer": sources.layer.tolist(),
            "token": sources.token.tolist(),
            "feature": sources.feature.tolist(),
            "activation": sources.activation.tolist(),
            "effect": effects.features.tolist(),
        }
    )


def _bias_rows(image: int, effects: SourceEffects) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part, value in (
        ("class token", effects.class_token),
        ("positions", effects.positions),
        ("ln_pre", effects.ln_pre),
        ("ln_post", effects.reader),
    ):
        rows.append({"image": image, "part": part, "layer": None, "effect": float(value)})
    for part, values in (("attention", effects.attention), ("b_dec", effects.b_dec)):
        for l, effect in enumerate(values.tolist()):
            rows.append({"image": image, "part": part, "layer": l, "effect": effect})
    return rows
