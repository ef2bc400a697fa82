"""Which features move one class? Ranked by direct effect on one half of the images, measured on
the other.

The reading is the class' logit minus the mean of the other classes' (softmax is blind to what all
of them share). With attention held and the MLPs cut (`vit_clt.hooks.FrozenPass`) feature i of layer
s adds to it, to first order,

    effect(s, i) = sum over rows of z_{s,i} * sum over l of <W_dec[s->l]_i, G_l>

G_l being the reading's gradient at y_l, all norms differentiated; its mean over images ranks, as
|effect|. Taking a feature away is no small change, and later features answer to it. So the first
of the ranking are then suppressed and turned up in the running model with error nodes, everything
live, beside random features of the same layers that fire about as often. All of it is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.features.effects import contrast_effects
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means
from vit_clt.analysis.stats.ranks import MIN_SOURCES, Agreement, row_agreement
from vit_clt.analysis.steering.readings import STEERED_UNITS
from vit_clt.analysis.steering.scaled_features import SCALES, scaled_features
from vit_clt.analysis.steering.versions import Feature
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, ImageRows, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, Rows, check_fits
from vit_clt.hooks.steering import check_rows
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot, class_number


@dataclass(frozen=True)
class SteeringSearch:
    """The features found, what steering each does, and what random ones do."""

    frame: pd.DataFrame
    """One row per feature and scale: candidate (its rank, from 0), role ("found" or "random"),
    layer, feature, rate, image_rate, cls_rate (shares active of the rows steered, of images, on one
    such row or more, and of CLS rows) and effect (all on the ranking half), scale,
    predicted ((scale - 1) * effect), and measured changes on the other half, paired with the
    unsteered model, each with _low and _high: contrast (logit minus the mean of the others'),
    probability, kl and, with labels, top1 and loss. Of features found also each minus the mean of
    the random ones beside it, paired over images with those held: contrast_beyond, ..."""
    baseline: dict[str, float]
    """The measures of the unsteered model on the measuring half."""
    agreement: Agreement | None
    """Spearman of predicted and measured contrast over the features found, suppressed; its interval
    holds the prediction. None for fewer than three."""
    slope: Interval
    """Of measured on predicted contrast over the features found, suppressed: sum m p / sum p^2,
    predictions held in its interval; NaN where all predictions are 0."""
    target: str
    label: int
    tokens: Rows
    l0: float
    """Active features a row and layer, on the ranking half (teacher trajectory)."""
    n_searched: int
    """Features that fire on the ranking half, over all layers."""
    n_ranked: int
    n: int
    """Images ranked on, and images measured on."""
    data: str
    templates: str
    seed: int

    @property
    def found(self) -> list[Feature]:
        """The features in order of |effect|."""
        rows = self.frame[(self.frame["role"] == "found") & (self.frame["scale"] == SCALES[0])]
        return list(zip(rows["layer"].tolist(), rows["feature"].tolist(), strict=True))

    @property
    def measures(self) -> list[str]:
        """Measures that the frame holds."""
        return list(self.baseline)

    def random_mean(self, candidate: int, scale: float | int, measure: str) -> float:
        """Mean change over the random features beside a candidate."""
        f = self.frame
        rows = f[(f["role"] == "random") & (f["candidate"] == candidate) & (f["scale"] == scale)]
        return float(rows[measure].mean())

    def to_frame(self) -> pd.DataFrame:
        """Every number."""
        return self.frame.copy()

    def metrics(self) -> list[Metric]:
        """Every change of the features found, floor: the mean of their random ones; what lies
        beyond those ("_beyond_random"); agreement of prediction and measurement, and its slope."""
        metrics = [
            Metric(f"unsteered_{name}", value, STEERED_UNITS[name], self.n)
            for name, value in self.baseline.items()
        ]
        for r in self.frame[self.frame["role"] == "found"].to_dict("records"):
            for measure in self.measures:
                name = f"{r['layer']}:{r['feature']}_scale_{r['scale']:g}_delta_{measure}"
                floor = self.random_mean(r["candidate"], r["scale"], measure)
                unit, beyond = STEERED_UNITS[measure], f"{measure}_beyond"
                change, past = (Interval.from_columns(r, each) for each in (measure, beyond))
                metrics += [
                    change.metric(name, unit, self.n, floor, 0.0),
                    past.metric(f"{name}_beyond_random", unit, self.n),
                ]
        metrics.append(self.slope.metric("predicted_measured_slope", "fraction", self.n))
        if self.agreement is not None:
            metrics += self.agreement.metrics("predicted_measured_spearman", self.n)
        return metrics

    def figure(self) -> go.Figure:
        """Measured changes of every feature found, beside its prediction and its random ones."""
        from vit_clt.analysis.steering.search_figure import search_figure

        return search_figure(self)


@torch.no_grad()
def steering_search(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    zs: ZeroShot,
    target: str | int,
    *,
    top: int = 10,
    tokens: Rows = "all",
    n_random: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> SteeringSearch:
    """Rank all features by their direct effect on a class, and measure the first of them.

    A random half of the images ranks; steering is measured on the other, so that the choice is not
    measured on what it was made on.

    Args:
        vit: the teacher, with no hooks attached; it must pool the class token.
        clt: its transcoder.
        data: at least four images; with labels accuracy and loss are read too.
        zs: the zero-shot classifier, of at least two classes.
        target: the class, by name or number (`class_number`).
        top: features measured.
        tokens: rows whose codes count, and are steered.
        n_random: random features measured beside each.
        seed: of the halves, the random features, permutations and bootstraps.
        progress: show progress bars.

    Raises:
        InputError: an unknown class, an argument out of range, too few images, no feature that
            fires, a hook on `vit`, labels without names, or a CLT or model that cannot serve.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    check_fits(vit, clt)
    check_rows(tokens, vit.cfg.n_tokens)
    label = class_number(zs.class_names, target)
    if len(zs.class_names) < 2:
        raise InputError(
            "class_names", "has 1 class; expected at least 2, as classes are compared."
        )
    for name, number in (("top", top), ("n_random", n_random)):
        if number < 1:
            raise InputError(name, f"is {number}; expected at least 1.")
    if len(data) < 4:
        raise InputError("data", f"has {len(data)} images; expected at least 4, two in each half.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data))
    half = len(data) // 2
    ranking, measuring = (
        ImageRows(data, sorted(rows.tolist())) for rows in (order[:half], order[half:])
    )

    effects, activity = contrast_effects(vit, clt, ranking, zs, label, tokens, progress)
    n_layers, n_features = effects.shape
    n_searched = sum(int((each.fired > 0).sum()) for each in activity.values())
    if not n_searched:
        raise InputError(f"no feature is active on these rows of {data.name}; expected some.")
    # an effect may be 0 (rows that nothing reads), but a silent feature is never found
    fires = np.stack([activity[s].fired > 0 for s in range(n_layers)])
    order = np.argsort(np.where(fires, -np.abs(effects), 1), axis=None, kind="stable")
    ranked = order[: min(top, n_searched)]
    found: list[Feature] = [divmod(int(at), n_features) for at in ranked]
    used: dict[int, set[int]] = {s: {i for t, i in found if t == s} for s in range(n_layers)}
    wanted: list[tuple[int, str, Feature]] = []
    for rank, (s, i) in enumerate(found):
        wanted.append((rank, "found", (s, i)))
        for other in activity[s].alike(i, n_random, rng, used[s]):
            used[s].add(other)
            wanted.append((rank, "random", (s, other)))

    before, changes = scaled_features(
        vit, clt, measuring, zs, label, [each for _, _, each in wanted], tokens, progress
    )
    samples = bootstrap_means(changes.reshape(len(changes), -1), seed)
    samples = samples.reshape(len(samples), *changes.shape[1:])
    beside = [
        [at for at, (other, role, _) in enumerate(wanted) if other == rank and role == "random"]
        for rank in range(len(found))
    ]
    rows: list[dict[str, Any]] = []
    for at, (rank, role, (s, i)) in enumerate(wanted):
        for j, scale in enumerate(SCALES):
            row: dict[str, Any] = {"candidate": rank, "role": role, "layer": s, "feature": i}
            row |= {"rate": activity[s].rate(i), "image_rate": activity[s].image_rate(i)}
            row |= {"cls_rate": activity[s].cls_rate(i)}
            row |= {"effect": float(effects[s, i]), "scale": scale}
            row["predicted"] = (scale - 1) * row["effect"]
            for m, measure in enumerate(before):
                change = Interval.of(changes[:, at, j, m].mean(), samples[:, at, j, m])
                row |= change.columns(measure)
                if role == "found":
                    # means are linear: draws of a difference are differences of draws
                    draws = samples[:, at, j, m] - samples[:, beside[rank], j, m].mean(1)
                    beyond = change - changes[:, beside[rank], j, m].mean()
                    row |= Interval.of(beyond, draws).columns(f"{measure}_beyond")
            rows.append(row)
    frame = pd.DataFrame(rows)
    chosen = [at for at, (_, role, _) in enumerate(wanted) if role == "found"]
    suppressed = frame[(frame["role"] == "found") & (frame["scale"] == SCALES[0])]
    predicted, measured = (suppressed[name].to_numpy() for name in ("predicted", "contrast"))
    contrast_draws = samples[:, chosen, 0, 0]
    agreement = None
    if len(found) >= MIN_SOURCES:
        agreement = row_agreement(
            predicted, measured, effect_draws=contrast_draws, seed=seed
        ).spearman
    n_rows = sum(each.n_rows for each in activity.values())
    return SteeringSearch(
        frame=frame,
        baseline=before,
        agreement=agreement,
        slope=_slope(predicted, measured, contrast_draws),
        target=zs.class_names[label],
        label=label,
        tokens=tokens,
        l0=sum(float(each.fired.sum()) for each in activity.values()) / n_rows,
        n_searched=n_searched,
        n_ranked=len(ranking),
        n=len(measuring),
        data=data.name,
        templates=zs.name,
        seed=seed,
    )


def _slope(
    predicted: Float[np.ndarray, " feature"],
    measured: Float[np.ndarray, " feature"],
    draws: Float[np.ndarray, "draw feature"],
) -> Interval:
    power = float(predicted @ predicted)
    if not power:
        return Interval(float("nan"))
    return Interval.of(float(measured @ predicted) / power, draws @ predicted / power)
