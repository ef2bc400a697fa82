"""Are effects in the linear model what interventions measure? Features are silenced one at a time.

One feature of one token row is set to 0 in the CLT that stands in for all MLPs, with error nodes
(so that nothing else differs from the model), and the logit is computed from the embedding, which
is normalised again. The measured effect is the clean logit minus the silenced one, in two ways:

    live        attention, norms, codes and active sets of all later layers are recomputed
    codes held  attention and norms are recomputed, every other code stays as it was

Two effects of the feature are predicted: the direct effect, and the total effect, which also goes
through later features. The direct effect predicts "codes held", the total effect "live"; if
attention and norms were held too, the measurement would equal the direct effect exactly. The same
two predictions with norms differentiated (`Norms`) show how much of a disagreement comes from
holding the norms. The rest comes from attention patterns, from active sets, and from the size of
the change: setting a feature to 0 is not a small one.
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
from transformer_lens.hook_points import HookPoint

from vit_clt.analysis.graphs.sources import Sources
from vit_clt.analysis.stats.intervals import RESAMPLES, Interval
from vit_clt.analysis.stats.similarity import pearson
from vit_clt.choices import Inputs, Norms
from vit_clt.errors import InputError
from vit_clt.hooks import Readout, replace_mlps
from vit_clt.hooks.interventions import check_unhooked
from vit_clt.metrics import Metric
from vit_clt.progress import Progress

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
PREDICTED: dict[Prediction, str] = {
    "direct": "direct effect",
    "total": "with later features",
    "direct_norms": "direct, norms differentiated",
    "total_norms": "with later features, norms differentiated",
}
MEASURED: dict[Measured, str] = {
    "live": "everything recomputes",
    "codes_held": "other codes held",
}
_BATCH = 32
_FEWEST = 3


@dataclass(frozen=True)
class GraphAgreement:
    """The predicted and the measured effects of silencing features, one at a time."""

    interventions: pd.DataFrame
    """One row per intervention. Columns: image, layer, token, feature, activation, chosen ("top" or
    "random"); the predictions direct, total, direct_norms and total_norms (norms differentiated);
    the measurements live and codes_held. All effects are in the unit of the logit."""
    seed: int
    """Seed of the bootstrap and of the permutations."""

    def to_frame(self) -> pd.DataFrame:
        """One row per prediction, measurement and choice of features ("top", "random", "all").

        Columns: pearson and spearman with 95 % bootstrap intervals over interventions (_low, _high)
        and with the value that 97.5 % of 1,000 permutations of the predictions stay below
        (_floor_high); slope, which is sum(measured * predicted) / sum(predicted^2), and 1 where
        predictions have the right size; n, the number of interventions.
        """
        return self._table.copy()

    @cached_property
    def _table(self) -> pd.DataFrame:
        rows = []
        for predicted, measured in PAIRS:
            for choice in ("all", "top", "random"):
                part = self.interventions
                if choice != "all":
                    part = part[part["chosen"] == choice]
                x, y = (part[name].to_numpy(float) for name in (predicted, measured))
                labels = {"predicted": predicted, "measured": measured, "chosen": choice}
                rows.append({**labels, **_agreement(x, y, self.seed)})
        return pd.DataFrame(rows)

    def live(self, norms: Norms) -> pd.Series:
        """The row of `to_frame` that says how well direct effects foretell interventions.

        Everything is recomputed, over all features.
        """
        table = self._table.set_index(["predicted", "measured", "chosen"])
        return table.loc[("direct" if norms == "held" else "direct_norms", "live", "all")]

    def supports(self, norms: Norms) -> bool:
        """Whether direct effects foretell interventions better than permuted ones do.

        The interval of Pearson's r then lies above what 97.5 % of permutations stay below.
        """
        r = self.live(norms)
        return bool(r["pearson_low"] > r["pearson_floor_high"])

    def shown(self) -> pd.DataFrame:
        """`to_frame` as text."""
        rows = []
        for r in self.to_frame().to_dict("records"):
            row = {
                "predicted": PREDICTED[r["predicted"]],
                "measured": MEASURED[r["measured"]],
                "features": r["chosen"],
                "N": r["n"],
            }
            for name, title in (("pearson", "Pearson's r"), ("spearman", "Spearman's ρ")):
                value, *ends = (r[f"{name}{end}"] for end in ("", "_low", "_high", "_floor_high"))
                row[title] = f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}], floor {ends[2]:.3f}"
            rows.append({**row, "slope": f"{r['slope']:.3f}"})
        return pd.DataFrame(rows)

    def metrics(self) -> list[Metric]:
        """Both correlations and the slope of every row; the floor is that of permutations."""
        metrics = []
        for r in self.to_frame().to_dict("records"):
            name = f"{r['predicted']}_against_{r['measured']}_{r['chosen']}"
            for measure in ("pearson", "spearman"):
                metrics.append(
                    Interval.from_columns(r, measure).metric(
                        f"{name}_{measure}", "fraction", r["n"], r[f"{measure}_floor_high"]
                    )
                )
            metrics.append(Metric(f"{name}_slope", r["slope"], "fraction", r["n"]))
        return metrics


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
    """Silence n features of each image, one at a time, and compare with the predicted effects.

    Half of the features are those with the largest |direct effect|; the other half is drawn at
    random from the other active features.

    Args:
        images: the sources of each image.
        directions: the direction in the embedding space that is read, one for each image.
        n: interventions per image, at least 2; fewer where fewer features are active.
        norms: what is done with norms in the direct effects that choose the top features.
        seed: seed of the random features, the bootstrap and the permutations.
        progress: show a progress bar.

    Raises:
        InputError: n below 2, hooks on the model, or no active feature on any image.
    """
    check_interventions(n)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    with Progress(
        total=len(images), desc="interventions", unit=" images", disable=not progress
    ) as bar:
        for i, (sources, direction) in enumerate(zip(images, directions, strict=True)):
            check_unhooked(sources.frozen.vit)
            predictions = _predictions(sources, direction)
            order = (
                predictions["direct" if norms == "held" else "direct_norms"]
                .abs()
                .argsort(descending=True, stable=True)
                .cpu()
                .numpy()
            )
            top, rest = np.split(order, [min(n // 2, len(order))])
            drawn = rng.choice(rest, min(n - n // 2, len(rest)), replace=False)
            silenced = torch.from_numpy(np.concatenate([top, drawn])).to(sources.layer)
            measurements = {
                measured: _measurements(sources, direction, silenced, measured)
                for measured in _INPUTS
            }
            for j, c in enumerate(silenced.tolist()):
                rows.append(
                    {
                        "image": i,
                        "layer": int(sources.layer[c]),
                        "token": int(sources.token[c]),
                        "feature": int(sources.feature[c]),
                        "activation": float(sources.activation[c]),
                        "chosen": "top" if j < len(top) else "random",
                        **{name: float(effects[c]) for name, effects in predictions.items()},
                        **{name: float(effects[j]) for name, effects in measurements.items()},
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


def _measurements(
    sources: Sources, direction: Tensor, silenced: Int[Tensor, " silenced"], measured: Measured
) -> Float[Tensor, " silenced"]:
    """Clean logit minus the logit with one feature silenced, for each of these active features."""
    vit, clt = sources.frozen.vit, sources.clt
    effects = sources.errors.new_zeros(len(silenced))

    def silence(codes: Tensor, hook: HookPoint, here: Tensor) -> Tensor:
        codes = codes.clone()
        # image 0 of the batch stays unaltered: it gives the clean logit by the same matrix products
        images = torch.arange(1, len(here) + 1, device=here.device)
        codes[images, sources.token[here], sources.feature[here]] = 0
        return codes

    layers = range(vit.cfg.n_layers)
    with replace_mlps(vit, clt, layers=layers, inputs=_INPUTS[measured], error_node=True):
        for layer in sources.layer[silenced].unique().tolist():
            places = (sources.layer[silenced] == layer).nonzero()[:, 0]
            for part in places.split(_BATCH):
                batch = sources.image.expand(len(part) + 1, -1, -1, -1)
                hook = partial(silence, here=silenced[part])
                embeddings = vit.run_with_hooks(
                    batch, fwd_hooks=[(f"clt.{layer}.hook_codes", hook)]
                )
                logits = F.normalize(embeddings, dim=-1) @ direction.to(embeddings)
                effects[part] = logits[0] - logits[1:]
    return effects


def _agreement(predicted: np.ndarray, measured: np.ndarray, seed: int) -> dict[str, Any]:
    from scipy.stats import rankdata  # takes a second to import

    n = len(predicted)
    rng = np.random.default_rng(seed)
    ranks = rankdata(predicted), rankdata(measured)
    draws = rng.integers(0, n, (RESAMPLES, n))
    shuffled = rng.permuted(np.tile(np.arange(n), (RESAMPLES, 1)), axis=1)
    columns: dict[str, Any] = {"n": n}
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
        columns |= value.columns(name)
        columns[f"{name}_floor_high"] = Interval.of(floor.mean(), floor).high
    power = float((predicted**2).sum())
    columns["slope"] = float((predicted * measured).sum()) / power if power else float("nan")
    return columns


def _ranked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.stats import rankdata  # takes a second to import

    return rankdata(x, axis=-1), rankdata(y, axis=-1)
