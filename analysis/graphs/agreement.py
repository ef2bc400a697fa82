"""Are effects in the linear model what interventions find? Features silenced, one at a time.

One feature of one token row is set to 0 in the CLT that stands in for all MLPs, error nodes added
(so that nothing else differs from the model), and the logit is read; its embedding is normalised
anew. Measured is clean minus silenced, twice:

    live        attention, norms, codes and active sets of all later layers recompute
    codes held  attention and norms recompute, every other code stays as it was

Predicted is the feature's direct effect, and its total effect, by way of later features too. Direct
effects answer for "codes held", total ones for "live"; with attention and norms held as well the
direct effect would be what is measured exactly. The same two with norms differentiated (`Norms`)
say how much of a disagreement comes from holding the norms; the rest is attention patterns, active
sets, and that a feature at 0 is no small change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens.hook_points import HookPoint

from vit_clt.analysis.graphs.sources import Sources
from vit_clt.analysis.stats.intervals import RESAMPLES, Interval
from vit_clt.analysis.stats.similarity import pearson
from vit_clt.choices import Inputs, Norms
from vit_clt.errors import InputError
from vit_clt.hooks import Readout, replace_mlps
from vit_clt.hooks.interventions import check_unhooked
from vit_clt.metrics import Metric

Prediction = Literal["direct", "total", "direct_norms", "total_norms"]
Measured = Literal["live", "codes_held"]
_INPUTS: dict[Measured, Inputs] = {"live": "stream", "codes_held": "teacher"}
PAIRS: tuple[tuple[Prediction, Measured], ...] = (
    ("direct", "codes_held"),
    ("direct", "live"),
    ("total", "live"),
    ("direct_norms", "codes_held"),
    ("direct_norms", "live"),
    ("total_norms", "live"),
)
_BATCH = 32
_FEWEST = 3


@dataclass(frozen=True)
class GraphAgreement:
    """Predicted and measured effects of silencing features."""

    interventions: pd.DataFrame
    """image, layer, token, feature, activation, chosen ("top" or "random"), direct, total,
    direct_norms and total_norms (norms differentiated), live, codes_held; all effects in the unit
    of the logit."""
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """One row per prediction, measurement and choice of features ("top", "random", "all").

        pearson and spearman with 95 % bootstrap intervals over interventions; their `floor_high`,
        what 97.5 % of 1,000 permutations of the predictions stay below; slope,
        sum(measured * predicted) / sum(predicted^2), 1 where predictions have the right size; n.
        """
        return self._table.copy()

    @cached_property
    def _table(self) -> pd.DataFrame:
        rows = []
        for predicted, measured in PAIRS:
            for chosen in ("all", "top", "random"):
                part = self.interventions
                if chosen != "all":
                    part = part[part["chosen"] == chosen]
                x, y = (part[name].to_numpy(float) for name in (predicted, measured))
                described = {"predicted": predicted, "measured": measured, "chosen": chosen}
                rows.append({**described, **_agreement(x, y, self.seed)})
        return pd.DataFrame(rows)

    def metrics(self) -> list[Metric]:
        """Both correlations and the slope of every row; the floor is that of permutations."""
        found = []
        for r in self.to_frame().to_dict("records"):
            name = f"{r['predicted']}_against_{r['measured']}_{r['chosen']}"
            for measure in ("pearson", "spearman"):
                found.append(
                    Interval.from_columns(r, measure).metric(
                        f"{name}_{measure}", "fraction", r["n"], r[f"{measure}_floor_high"]
                    )
                )
            found.append(Metric(f"{name}_slope", r["slope"], "fraction", r["n"]))
        return found


@torch.no_grad()
def graph_agreement(
    images: Sequence[Sources],
    directions: Sequence[Float[Tensor, " d_embed"]],
    *,
    n: int = 64,
    norms: Norms = "held",
    seed: int = 0,
    progress: bool = False,
) -> GraphAgreement:
    """Silence n features an image, one at a time: half those with the largest |direct effect|, half
    drawn at random from the other active ones.

    Args:
        images: sources of each image.
        directions: what is read of each.
        norms: of the direct effects that choose the top features.
        n: interventions an image, at least 2; fewer where fewer features are active.
        seed: of the draw, the bootstrap and the permutations.
        progress: show a progress bar.

    Raises:
        InputError: n below 2, hooks on the model, or no active feature on any image.
    """
    check_interventions(n)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(images), desc="interventions", unit=" images", disable=not progress) as bar:
        for i, (sources, direction) in enumerate(zip(images, directions, strict=True)):
            check_unhooked(sources.frozen.vit)
            predicted = _predictions(sources, direction)
            order = (
                predicted["direct" if norms == "held" else "direct_norms"]
                .abs()
                .argsort(descending=True, stable=True)
                .cpu()
                .numpy()
            )
            top, rest = np.split(order, [min(n // 2, len(order))])
            drawn = rng.choice(rest, min(n - n // 2, len(rest)), replace=False)
            chosen = torch.from_numpy(np.concatenate([top, drawn])).to(sources.layer)
            found = {each: _silenced(sources, direction, chosen, each) for each in _INPUTS}
            for j, c in enumerate(chosen.tolist()):
                rows.append(
                    {
                        "image": i,
                        "layer": int(sources.layer[c]),
                        "token": int(sources.token[c]),
                        "feature": int(sources.feature[c]),
                        "activation": float(sources.activation[c]),
                        "chosen": "top" if j < len(top) else "random",
                        **{each: float(values[c]) for each, values in predicted.items()},
                        **{each: float(values[j]) for each, values in found.items()},
                    }
                )
            bar.update()
    if not rows:
        raise InputError(
            "clt", "has no active feature on the images asked for; expected one to silence."
        )
    return GraphAgreement(pd.DataFrame(rows), seed)


def check_interventions(n: int) -> None:
    """Refuse a number of interventions that leaves top or random features without one.

    Raises:
        InputError: n below 2.
    """
    if n < 2:
        raise InputError(
            "interventions", f"is {n}; expected at least 2, half of them top features."
        )


def _predictions(sources: Sources, direction: Tensor) -> dict[Prediction, Float[Tensor, " active"]]:
    """Effects of every active feature."""
    frozen = sources.frozen
    readouts: dict[Prediction, Readout] = {
        "direct": frozen.read_output(direction),
        "total": sources.total_readout(direction),
        "direct_norms": frozen.read_output(direction, norms="differentiated"),
        "total_norms": sources.total_readout(direction, norms="differentiated"),
    }
    return {name: sources.effects(readout).features for name, readout in readouts.items()}


def _silenced(
    sources: Sources, direction: Tensor, chosen: Int[Tensor, " chosen"], measured: Measured
) -> Float[Tensor, " chosen"]:
    vit, clt = sources.frozen.vit, sources.clt
    found = sources.errors.new_zeros(len(chosen))

    def silence(codes: Tensor, hook: HookPoint, here: Tensor) -> Tensor:
        codes = codes.clone()
        # row 0 of the batch stays as it is: the clean logit, by the same matrix products
        rows = torch.arange(1, len(here) + 1, device=here.device)
        codes[rows, sources.token[here], sources.feature[here]] = 0
        return codes

    layers = range(vit.cfg.n_layers)
    with replace_mlps(vit, clt, layers=layers, inputs=_INPUTS[measured], error_node=True):
        for layer in sources.layer[chosen].unique().tolist():
            of_layer = (sources.layer[chosen] == layer).nonzero()[:, 0]
            for part in of_layer.split(_BATCH):
                batch = sources.image.expand(len(part) + 1, -1, -1, -1)
                hook = partial(silence, here=chosen[part])
                embeddings = vit.run_with_hooks(
                    batch, fwd_hooks=[(f"clt.{layer}.hook_codes", hook)]
                )
                logits = F.normalize(embeddings, dim=-1) @ direction.to(embeddings)
                found[part] = logits[0] - logits[1:]
    return found


def _agreement(predicted: np.ndarray, measured: np.ndarray, seed: int) -> dict[str, Any]:
    from scipy.stats import rankdata  # takes a second to import

    n = len(predicted)
    rng = np.random.default_rng(seed)
    ranks = rankdata(predicted), rankdata(measured)
    draws = rng.integers(0, n, (RESAMPLES, n))
    shuffled = rng.permuted(np.tile(np.arange(n), (RESAMPLES, 1)), axis=1)
    found: dict[str, Any] = {"n": n}
    for name, (x, y), (x_drawn, y_drawn) in (
        ("pearson", (predicted, measured), (predicted[draws], measured[draws])),
        ("spearman", ranks, _ranked(predicted[draws], measured[draws])),
    ):
        value = Interval(float("nan"))
        if n >= _FEWEST:
            drawn = pearson(x_drawn, y_drawn)
            # a resample that happens to hold one intervention alone has no correlation
            drawn = drawn[~np.isnan(drawn)]
            r = float(pearson(x, y))
            value = Interval.of(r, drawn) if len(drawn) else Interval(r)
        floor = pearson(x[shuffled], np.broadcast_to(y, shuffled.shape))
        found |= value.columns(name)
        found[f"{name}_floor_high"] = Interval.of(floor.mean(), floor).high
    power = float((predicted**2).sum())
    found["slope"] = float((predicted * measured).sum()) / power if power else float("nan")
    return found


def _ranked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.stats import rankdata  # takes a second to import

    return rankdata(x, axis=-1), rankdata(y, axis=-1)
