"""Cascaded replacement: layers s..L-1 replaced at once, for each s, beside its floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.means import position_means
from vit_clt.analysis.stats.readings import Readings, accuracy_and_loss, gather_readings
from vit_clt.choices import Inputs, TokenKind, check_choice
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, SharedPrefix, check_fits, layer_list, token_rows
from vit_clt.hooks.points import HOOK_OUT
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.zero_shot import Outcome, ZeroShot

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Cascade(Study):
    """Readings of the ranges first..L-1 per token kind, each with its zero and mean floors."""

    name = "cascade"

    readings: Readings
    """Versions "original" and, per token kind and first layer s, "{tokens}_{inputs}_{s}" with the
    CLT, "{tokens}_zero_{s}" and "{tokens}_mean_{s}" with those MLP rows at zero or their mean."""
    first_layers: list[int]
    n_layers: int
    tokens: list[TokenKind]
    inputs: list[Inputs]
    l0: dict[str, float]
    """Per replaced version: active features a token and source layer, on the rows replaced."""
    templates: str
    """Zero-shot prompts."""
    data: str
    split: str | None
    seed: int
    """Of the bootstrap."""

    @property
    def mean_l0(self) -> float:
        """Active features a token and source layer, as a mean over all that was replaced."""
        return float(self.to_frame()["l0"].mean())

    def to_frame(self) -> pd.DataFrame:
        """One row per token kind, inputs and range; accuracies are fractions, losses nats."""
        original = self.readings["original"]
        rows: list[dict[str, Any]] = []
        for tokens, inputs, s in self._ranges():
            name = f"{tokens}_{inputs}_{s}"
            read = self.readings[name]
            zero, mean = self.readings[f"{tokens}_zero_{s}"], self.readings[f"{tokens}_mean_{s}"]
            rows.append(
                {
                    "tokens": tokens,
                    "first_layer": s,
                    "last_layer": self.n_layers - 1,
                    "inputs": inputs,
                    **read.top1.columns("top1"),
                    "n": read.n,
                    "baseline": original.top1,
                    "floor_zero": zero.top1,
                    "floor_mean": mean.top1,
                    **read.loss.columns("loss"),
                    "loss_baseline": original.loss,
                    "loss_floor_zero": zero.loss,
                    "loss_floor_mean": mean.loss,
                    "l0": self.l0[name],
                }
            )
            if read.any_hit is not None:
                floors = {"baseline": original, "floor_zero": zero, "floor_mean": mean}
                of_floors = {f"any_hit_{key}": each.any_hit for key, each in floors.items()}
                rows[-1] |= {**read.any_hit.columns("any_hit"), **of_floors}
        return pd.DataFrame(rows)

    def facts(self) -> Facts:
        """The images, and what was replaced on them."""
        return Facts(
            self.data,
            self.readings.n,
            " ".join(self.tokens),
            " ".join(self.inputs),
            self.mean_l0,
            self.split,
            seed=self.seed,
            more={
                "templates": self.templates,
                "first_layers": self.first_layers,
                "floor": "those MLP rows at their mean over the images",
            },
        )

    def caption(self) -> str:
        """What was measured, and what the cells of `shown` are."""
        return (
            f"{self.data}, N = {self.readings.n}, templates: {self.templates}, "
            f"L0 {self.mean_l0:.1f}; top-1 % / loss (nats)"
        )

    def shown(self) -> pd.DataFrame:
        """One row per token kind, inputs and range: accuracy and loss, as text."""
        rows = []
        for tokens, inputs, s in self._ranges():
            versions = {
                "CLT": f"{tokens}_{inputs}_{s}",
                "unaltered": "original",
                "at mean": f"{tokens}_mean_{s}",
                "at zero": f"{tokens}_zero_{s}",
            }
            cells = {"rows, layers, inputs": f"{tokens} {s}-{self.n_layers - 1} {inputs}"}
            for column, version in versions.items():
                read = self.readings[version]
                cells[column] = accuracy_and_loss(read.top1, read.loss)
            rows.append(cells)
        return pd.DataFrame(rows)

    def metrics(self) -> list[Metric]:
        """Accuracy and loss of the original and of every range; the floor is that of means."""
        original = self.readings["original"]
        found = original.metrics("original")
        for tokens, inputs, s in self._ranges():
            found += self.readings[f"{tokens}_{inputs}_{s}"].metrics(
                f"{tokens}_{inputs}_{s}_to_{self.n_layers - 1}",
                floor=self.readings[f"{tokens}_mean_{s}"],
                baseline=original,
            )
        return found

    def figure(self) -> go.Figure:
        """Accuracy and loss against the first layer replaced."""
        from vit_clt.analysis.fit.cascade_figure import cascade_figure

        return cascade_figure(self)

    def _ranges(self) -> list[tuple[TokenKind, Inputs, int]]:
        return [(t, i, s) for t in self.tokens for i in self.inputs for s in self.first_layers]


@torch.no_grad()
def cascade(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    *,
    tokens: TokenKind | Sequence[TokenKind] = "cls",
    inputs: Inputs | Sequence[Inputs] = "stream",
    first_layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Cascade:
    """Zero-shot accuracy and loss with the CLT in place of layers s..L-1, for each s.

    One unaltered pass of each batch serves all ranges, floors, token kinds and inputs.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: labelled images.
        zs: the zero-shot classifier.
        tokens: rows replaced, one kind or several.
        inputs: where codes come from, "stream", "teacher" or both.
        first_layers: the values of s; all layers by default.
        seed: of the bootstrap.
        progress: show a progress bar.

    Raises:
        InputError: an argument out of range, labels without names, a hook on `vit`, or a CLT of
            another model.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    check_fits(vit, clt)
    n = vit.cfg.n_layers
    firsts = layer_list(range(n) if first_layers is None else first_layers, n)
    kinds: list[TokenKind] = _listed("tokens", tokens, get_args(TokenKind))
    trajectories: list[Inputs] = _listed("inputs", inputs, get_args(Inputs))
    rows = {kind: token_rows(kind, vit.cfg.has_cls) for kind in kinds}
    means = mean_mlp_outputs(vit, data, progress=progress)
    outcomes: dict[str, list[Outcome]] = {"original": []}
    l0: dict[str, float] = {}
    with tqdm(total=len(data), desc="cascade", unit=" images", disable=not progress) as bar:
        for images, labels in data:
            shared = SharedPrefix(vit, images.to(means.device))
            read: dict[str, Outcome] = {"original": zs.read(shared.embeddings, labels)}
            for kind in kinds:
                mean = {l: means[l, rows[kind]] for l in range(n)}
                for s in firsts:
                    zeroed = shared.overwritten(s, kind)
                    read[f"{kind}_zero_{s}"] = zs.read(zeroed, labels)
                    at_mean = shared.overwritten(s, kind, mean)
                    read[f"{kind}_mean_{s}"] = zs.read(at_mean, labels)
                for source in trajectories:
                    for result in shared.replaced(clt, firsts, kind, source):
                        name = f"{kind}_{source}_{result.first}"
                        read[name] = zs.read(result.embeddings, labels)
                        l0[name] = l0.get(name, 0.0) + result.l0 * len(images) / len(data)
            for name, outcome in read.items():
                outcomes.setdefault(name, []).append(outcome)
            bar.update(len(images))
    readings = gather_readings(outcomes, seed, data.label_sets)
    return Cascade(
        readings, firsts, n, kinds, trajectories, l0, zs.name, data.name, data.split, seed
    )


def _listed(name: str, chosen: str | Sequence[str], known: Sequence[str]) -> list[Any]:
    wanted = [chosen] if isinstance(chosen, str) else list(dict.fromkeys(chosen))
    for each in wanted:
        check_choice(name, each, known)
    if not wanted:
        raise InputError(name, f"is empty; expected at least one of {', '.join(known)}.")
    return wanted


def mean_mlp_outputs(
    vit: HookedViT, data: ImageData, *, progress: bool = False
) -> Float[Tensor, "layer token d_model"]:
    """Mean of every y_l over the images, per token position (summed in float64)."""
    names = [HOOK_OUT.format(l=l) for l in range(vit.cfg.n_layers)]
    means = position_means(vit, data, names, title="mean MLP outputs", progress=progress)
    return torch.stack([means[name] for name in names])
