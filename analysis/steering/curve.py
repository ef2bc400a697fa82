"""Steering curves: what the classes' probabilities do as features are turned up or down.

Every MLP is replaced with error nodes (`vit_clt.hooks.steer`), so that strength "as it is" is the
model itself, and each number is the effect of the edit alone, everything downstream live. Beside
the features chosen stand random ones of the same layers that fire about as often, steered alike.
All of it is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor
from tqdm import tqdm

from vit_clt.analysis.features.activity import feature_activity
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.steering.readings import SteeredReader, known_labels
from vit_clt.analysis.steering.versions import STEERED, Feature, Steered, steered_versions
from vit_clt.choices import EditKind, check_choice
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import Edit, HookedViT, Rows, SteeredPass, check_fits
from vit_clt.hooks.steering import check_edits, check_rows
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot

STRENGTHS: dict[EditKind, tuple[float | int, ...]] = {
    "clamp": (-2, -1, 0, 1, 2, 4, 6),
    "scale": (-1, 0, 1, 2, 4),
}
UNSTEERED = "unsteered"


@dataclass(frozen=True)
class SteeringCurve:
    """Readings of the model at every strength."""

    frame: pd.DataFrame
    """One row per version ("unsteered", "steered", "random j"), strength and measure: features,
    raw (what z becomes, or the factor), class and label (of class measures), unit, value, low,
    high, change (from the unsteered model, paired), change_low, change_high, n, and in steered rows
    beyond (less the mean of the random ones, paired over images with those held), beyond_low,
    beyond_high. Measures:
    "probability" (fraction) and "logit" of every class, "kl" (nats, KL of the unsteered model's
    probabilities from these), and with labels "top1" (fraction) and "loss" (nats)."""
    steered: Steered
    controls: list[Steered]
    kind: EditKind
    strengths: list[float]
    """Times the typical activation (clamp), or the factor (scale)."""
    tokens: Rows
    only_active: bool
    class_names: list[str]
    templates: str
    data: str
    l0: float
    """Active features a row of the layers steered, unsteered, over all images of `data`."""
    n: int
    """Images read."""
    n_typical: int
    """Images of which typical activations and firing rates were taken."""
    seed: int

    @property
    def labelled(self) -> bool:
        """Whether accuracy and loss are known."""
        return bool((self.frame["measure"] == "loss").any())

    def to_frame(self) -> pd.DataFrame:
        """Every number; accuracies and probabilities are fractions, losses and KL nats."""
        return self.frame.copy()

    def metrics(self) -> list[Metric]:
        """The steered model's probabilities, KL, accuracy and loss, by strength; the change of each
        ("_change"), paired with the unsteered model; and what it is beyond the mean of the random
        features ("_beyond_random"), paired with them.

        Floor: the mean of the random features at that strength. Baseline: the unsteered model.
        """
        keys = ["strength", "measure", "label"]
        shown = self.frame[self.frame["measure"] != "logit"]
        random = shown[shown["version"].str.startswith("random")]
        floors = random.groupby(keys, dropna=False)["value"].mean().rename("floor").reset_index()
        rows = shown[shown["version"] == STEERED].merge(floors, on=keys)
        found = []
        for r in rows.to_dict("records"):
            of_class = "" if pd.isna(r["class"]) else f"_{r['class']}"
            name = f"{self.kind}_{r['strength']:g}_{r['measure']}{of_class}"
            baseline, unit = r["value"] - r["change"], r["unit"]
            value = Interval(r["value"], r["low"], r["high"])
            change, beyond = (Interval.from_columns(r, each) for each in ("change", "beyond"))
            found += [
                value.metric(name, unit, self.n, r["floor"], baseline),
                change.metric(f"{name}_change", unit, self.n),
                beyond.metric(f"{name}_beyond_random", unit, self.n),
            ]
        return found

    def figure(self, target: str | int | None = None) -> go.Figure:
        """Changes by class; those of one class, KL, accuracy and loss beside the random features'.

        Args:
            target: class that is drawn and compared with the random features, by name or number;
                default: the one whose probability moves most.
        """
        from vit_clt.analysis.steering.curve_figure import curve_figure

        return curve_figure(self, target)


@torch.no_grad()
def steering_curve(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    zs: ZeroShot,
    features: Feature | Sequence[Feature],
    *,
    kind: EditKind = "clamp",
    values: Sequence[float | int] | None = None,
    tokens: Rows = "all",
    only_active: bool = False,
    rows: Sequence[int] | None = None,
    n_random: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> SteeringCurve:
    """Class probabilities at several strengths of some features, beside random ones.

    Clamps are in units of a feature's typical activation: the mean of z where it is active, over
    these rows of all images of `data` (teacher trajectory). Probabilities are the softmax at the
    model's own logit scale; intervals are bootstraps over the images read, NaN for a single one.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: images; with labels accuracy and loss are read too.
        zs: the zero-shot classifier.
        features: (layer, feature), one or several that are steered together.
        kind: "clamp" to strength times the typical activation, or "scale" by the strength.
        values: the strengths; default: -2 to 6 (clamp), -1 to 4 (scale).
        tokens: rows steered.
        only_active: clamp only where the feature is active.
        rows: images of `data` that are read; default: all.
        n_random: controls: as many features, of the same layers and of about the same firing rate.
        seed: of controls and bootstraps.
        progress: show progress bars.

    Raises:
        InputError: a feature, row or strength that cannot be, one that never fires on these rows,
            a hook on `vit`, labels without names, or a CLT of another model.
    """
    data = as_image_data(data)
    check_prepared(vit, data)
    check_fits(vit, clt)
    chosen = [features] if isinstance(features, tuple) else list(features)
    _check(vit, clt, chosen, kind, tokens, n_random)
    strengths = [float(v) for v in (STRENGTHS[kind] if values is None else values)]
    if not strengths or len(set(strengths)) < len(strengths) or not np.isfinite(strengths).all():
        raise InputError(
            "values", f"are {strengths}; expected different finite numbers, at least one."
        )
    strengths.sort()
    shown = list(range(len(data))) if rows is None else list(rows)
    check_images(shown, data)

    layers = sorted({s for s, _ in chosen})
    activity = feature_activity(vit, clt, data, layers, tokens=tokens, progress=progress)
    versions = steered_versions(activity, chosen, n_random, seed, data.name)
    edits = {
        (version.name, strength): version.edits(kind, strength, tokens, only_active)
        for version in versions
        for strength in strengths
    }
    clean: list[Tensor] = []
    steered: dict[tuple[str, float], list[Tensor]] = {at: [] for at in edits}
    labels: list[Tensor] = []
    total = len(shown) * len(edits)
    with tqdm(total=total, desc="steering", unit=" images", disable=not progress) as bar:
        for start in range(0, len(shown), data.batch_size):
            images, of_batch = data.batch(shown[start : start + data.batch_size])
            run = SteeredPass(vit, clt, images.to(clt.b_dec.device))
            clean.append(zs.logits(run.embeddings.double()).cpu())
            labels.append(of_batch)
            for at, each in edits.items():
                steered[at].append(zs.logits(run.steered(each).double()).cpu())
                bar.update(len(images))
    reader = SteeredReader(
        torch.cat(clean), known_labels(zs, torch.cat(labels)), zs.class_names, seed
    )
    parts = [reader.rows(torch.cat(clean), version=UNSTEERED, features="", raw="")]
    for version in versions:
        for strength in strengths:
            others = versions[1:] if version.name == STEERED else []
            parts.append(
                reader.rows(
                    torch.cat(steered[version.name, strength]),
                    [torch.cat(steered[other.name, strength]) for other in others],
                    version=version.name,
                    features=version.text(),
                    raw=", ".join(f"{v:.4g}" for v in version.values(kind, strength)),
                    strength=strength,
                )
            )
    return SteeringCurve(
        frame=pd.concat(parts, ignore_index=True),
        steered=versions[0],
        controls=versions[1:],
        kind=kind,
        strengths=strengths,
        tokens=tokens,
        only_active=only_active,
        class_names=zs.class_names,
        templates=zs.name,
        data=data.name,
        l0=float(np.mean([each.fired.sum() / each.n_rows for each in activity.values()])),
        n=len(shown),
        n_typical=len(data),
        seed=seed,
    )


def check_images(rows: Sequence[int], data: ImageData) -> None:
    """Refuse rows of the data that there are not.

    Raises:
        InputError: one out of range, one given twice (an image would count double), or none.
    """
    if not rows:
        raise InputError("query", "is empty; expected at least one image.")
    if len(set(rows)) < len(rows):
        raise InputError("query", "holds a row twice; expected each once.")
    for row in rows:
        if not 0 <= row < len(data):
            raise InputError(
                "query", f"is {row}; expected rows from 0 to {len(data) - 1} of {data.name}."
            )


def _check(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    features: Sequence[Feature],
    kind: EditKind,
    tokens: Rows,
    n_random: int,
) -> None:
    check_choice("kind", kind, get_args(EditKind))
    if n_random < 1:
        raise InputError(
            "n_random", f"is {n_random}; expected at least 1 random feature beside each."
        )
    check_rows(tokens, vit.cfg.n_tokens)
    edits = [Edit(s, i, "scale", 1, tokens) for s, i in features]
    check_edits(clt, edits, layers=range(vit.cfg.n_layers), n_tokens=vit.cfg.n_tokens)
