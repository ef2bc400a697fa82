"""Cascaded replacement: layers s..L-1 replaced at once, for every s, beside the floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

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
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier, Outcome
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Cascade(Study):
    """Readings with layers s..L-1 replaced, for every s and token kind, beside their floors."""

    name = "cascade"

    readings: Readings
    """Versions "original" and, per token kind and first layer s, "{tokens}_{inputs}_{s}" with the
    CLT, "{tokens}_zero_{s}" and "{tokens}_mean_{s}" with those MLP rows at zero or their mean."""
    first_layers: list[int]
    n_layers: int
    tokens: list[TokenKind]
    inputs: list[Inputs]
    l0: dict[str, float]
    """By replaced version, active features a token row and source layer on the rows replaced."""
    readout: str
    """Name of the readout of classes."""
    data: str
    split: str | None
    seed: int
    """Seed of the bootstrap."""

    @property
    def mean_l0(self) -> float:
        """Active features a token row and source layer, as a mean over all replaced versions."""
        return float(self.to_frame()["l0"].mean())

    def to_frame(self) -> pd.DataFrame:
        """One row per token kind, inputs and range; accuracies are fractions, losses nats."""
        original = self.readings["original"]
        rows: list[dict[str, Any]] = []
        for tokens, inputs, s in self._ranges():
            name = f"{tokens}_{inputs}_{s}"
            reading = self.readings[name]
            zero, mean = self.readings[f"{tokens}_zero_{s}"], self.readings[f"{tokens}_mean_{s}"]
            rows.append(
                {
                    "tokens": tokens,
                    "first_layer": s,
                    "last_layer": self.n_layers - 1,
                    "inputs": inputs,
                    **reading.top1.columns("top1"),
                    "n": reading.n,
                    "baseline": original.top1,
                    "floor_zero": zero.top1,
                    "floor_mean": mean.top1,
                    **reading.loss.columns("loss"),
                    "loss_baseline": original.loss,
                    "loss_floor_zero": zero.loss,
                    "loss_floor_mean": mean.loss,
                    "l0": self.l0[name],
                }
            )
            if reading.any_hit is not None:
                references = {"baseline": original, "floor_zero": zero, "floor_mean": mean}
                rows[-1] |= reading.any_hit.columns("any_hit")
                rows[-1] |= {f"any_hit_{key}": r.any_hit for key, r in references.items()}
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
                "readout": self.readout,
                "first_layers": self.first_layers,
                "floor": "those MLP rows at their mean over the images",
            },
        )

    def caption(self) -> str:
        """One sentence on what was measured and on the cells of `shown`."""
        return (
            f"{self.data}, N = {self.readings.n}, readout: {self.readout}, "
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
                reading = self.readings[version]
                cells[column] = accuracy_and_loss(reading.top1, reading.loss)
            rows.append(cells)
        return pd.DataFrame(rows)

    def metrics(self) -> list[Metric]:
        """Accuracy and loss of the unaltered model and of every range, beside the mean floor."""
        original = self.readings["original"]
        metrics = original.metrics("original")
        for tokens, inputs, s in self._ranges():
            metrics += self.readings[f"{tokens}_{inputs}_{s}"].metrics(
                f"{tokens}_{inputs}_{s}_to_{self.n_layers - 1}",
                floor=self.readings[f"{tokens}_mean_{s}"],
                baseline=original,
            )
        return metrics

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
    classifier: Classifier,
    *,
    tokens: TokenKind | Sequence[TokenKind] = "cls",
    inputs: Inputs | Sequence[Inputs] = "stream",
    first_layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Cascade:
    """Accuracy and loss with the CLT in place of the MLPs of layers s..L-1, for every s.

    One clean pass of each batch serves all ranges, floors, token kinds and inputs.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: labelled images.
        classifier: the readout.
        tokens: kind of rows replaced, or several kinds.
        inputs: where codes come from, "stream", "teacher" or both.
        first_layers: the values of s; all layers by default.
        seed: seed of the bootstrap.
        progress: show a progress bar.

    Raises:
        InputError: an argument is out of range, labels have no names, `vit` has a hook, or the CLT
            belongs to another model.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    check_fits(vit, clt)
    n = vit.cfg.n_layers
    firsts = layer_list(range(n) if first_layers is None else first_layers, n)
    kinds: list[TokenKind] = _listed("tokens", tokens, get_args(TokenKind))
    trajectories: list[Inputs] = _listed("inputs", inputs, get_args(Inputs))
    rows = {kind: token_rows(kind, vit.cfg.rows) for kind in kinds}
    means = mean_mlp_outputs(vit, data, progress=progress)
    outcomes: dict[str, list[Outcome]] = {"original": []}
    l0: dict[str, float] = {}
    with Progress(total=len(data), desc="cascade", unit=" images", disable=not progress) as bar:
        for images, labels in data:
            shared = SharedPrefix(vit, images.to(means.device))
            batch: dict[str, Outcome] = {"original": classifier.read(shared.embeddings, labels)}
            for kind in kinds:
                mean = {l: means[l, rows[kind]] for l in range(n)}
                for s in firsts:
                    zeroed = shared.overwritten(s, kind)
                    batch[f"{kind}_zero_{s}"] = classifier.read(zeroed, labels)
                    at_mean = shared.overwritten(s, kind, mean)
                    batch[f"{kind}_mean_{s}"] = classifier.read(at_mean, labels)
                for trajectory in trajectories:
                    for result in shared.replaced(clt, firsts, kind, trajectory):
                        name = f"{kind}_{trajectory}_{result.first}"
                        batch[name] = classifier.read(result.embeddings, labels)
                        l0[name] = l0.get(name, 0.0) + result.l0 * len(images) / len(data)
            for name, outcome in batch.items():
                outcomes.setdefault(name, []).append(outcome)
            bar.update(len(images))
    readings = gather_readings(outcomes, seed, data.label_sets)
    return Cascade(
        readings, firsts, n, kinds, trajectories, l0, classifier.name, data.name, data.split, seed
    )


def _listed(name: str, choice: str | Sequence[str], known: Sequence[str]) -> list[Any]:
    choices = [choice] if isinstance(choice, str) else list(dict.fromkeys(choice))
    for value in choices:
        check_choice(name, value, known)
    if not choices:
        raise InputError(name, f"is empty; expected at least one of {', '.join(known)}.")
    return choices


def mean_mlp_outputs(
    vit: HookedViT, data: ImageData, *, progress: bool = False
) -> Float[Tensor, "layer token d_model"]:
    """Mean of every y_l over the images, at each token position (summed in float64)."""
    names = [HOOK_OUT.format(l=l) for l in range(vit.cfg.n_layers)]
    means = position_means(vit, data, names, title="mean MLP outputs", progress=progress)
    return torch.stack([means[name] for name in names])
