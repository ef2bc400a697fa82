"""Which pairs of factor values does the model get wrong when features are suppressed?

The group's codes are set to 0 on a region's rows, and the rest of the model stays
(`vit_clt.hooks.SteeredPass`). This is compared with several draws of as many random features of the
same layers that fire about equally often, which show what suppressing any features costs. The study
is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from vit_clt.analysis.factors.anova import Cells
from vit_clt.analysis.factors.edited_sets import EditedSets, measured_on
from vit_clt.analysis.factors.selectivity_study import factor_values
from vit_clt.analysis.factors.sets import FeatureSet, active_codes, compared_sets
from vit_clt.analysis.reporting.study import Facts
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.names import layers_text
from vit_clt.analysis.stats.readings import MEASURES, UNITS, Readings, gather_readings
from vit_clt.choices import Region
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.hooks import Edit, HookedViT, SteeredPass, check_fits
from vit_clt.hooks.rows import REGION_NAMES, region_rows
from vit_clt.metrics import Metric
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier, Outcome
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class Suppression(EditedSets):
    """Accuracy and loss of the model without the group, and without each set of random features."""

    name = "suppression"

    readings: Readings
    """Readings of the versions "original", "group" and "random 0", "random 1", ..."""
    correct: dict[str, Float[np.ndarray, "a b"]]
    """Accuracy of each version by pair of values."""
    loss: dict[str, Float[np.ndarray, "a b"]]
    """Cross-entropy (nats) of each version by pair of values."""
    activity: dict[str, Float[np.ndarray, "a b"]]
    """Features of each set that are active anywhere in the region, per image, by pair."""
    counts: Float[np.ndarray, "a b"]
    """Number of images of each pair."""
    values: tuple[list[int], list[int]]
    """Values of both factors."""
    factors: tuple[str, str]
    """Names of both factors."""

    @property
    def n(self) -> int:
        """Number of images."""
        return self.readings.n

    @property
    def randoms(self) -> list[str]:
        """Names of the versions in which a random set is suppressed."""
        return [name for name in self.readings.names if name.startswith("random")]

    def follows(self, name: str = "group") -> float:
        """Spearman's rank correlation, over pairs, of the activity of a set and the rise in loss.

        It says whether the model fails on the pairs for which the features are active. NaN where
        the activity or the rise is constant.
        """
        from scipy.stats import spearmanr  # takes a second to import

        rise = (self.loss[name] - self.loss["original"]).ravel()
        active = self.activity[name].ravel()
        if np.ptp(rise) == 0 or np.ptp(active) == 0:
            return float("nan")
        return float(spearmanr(active, rise).statistic)

    def to_frame(self) -> pd.DataFrame:
        """One row per version: accuracy (a fraction), loss (nats), their changes paired with the
        unaltered model, the number of active features per image, and `follows`."""
        rows = []
        for name in self.readings.names:
            row = {"features": name, **self.readings[name].columns()}
            if name != "original":
                row |= {"active": self._active(name), "follows": self.follows(name)}
                for measure in MEASURES:
                    change = self.readings.difference(name, "original", measure)
                    row |= change.columns(f"delta_{measure}")
            rows.append(row)
        return pd.DataFrame(rows)

    def facts(self) -> Facts:
        """Images, region, and both factors."""
        return self.facts_with("zero", factors=list(self.factors))

    def caption(self) -> str:
        """The features that are suppressed, the region, and the comparison."""
        return (
            f"{self.data}, N = {self.n}: {self.n_features} features of layers "
            f"{layers_text(self.layers)} at 0 on {REGION_NAMES[self.region]} (L0 {self.l0:.1f}), "
            "CLT with error nodes, stream inputs; random: as many that fire equally often; "
            f"readout: {self.readout}, seed {self.seed}"
        )

    def shown(self) -> pd.DataFrame:
        """One row per version, as text."""
        return pd.DataFrame(
            {
                "features": name,
                "top-1 (%)": reading.top1.text(".2f", 100),
                "loss (nats)": reading.loss.text(".4f"),
                "Δ loss": ""
                if name == "original"
                else self.readings.difference(name, "original", "loss").text("+.4f"),
            }
            for name in self.readings.names
            for reading in [self.readings[name]]
        )

    def group_minus_random(self) -> Interval:
        """Loss of "group" minus the mean of random sets, with its interval paired over images."""
        return self.readings.difference("group", self.randoms, "loss")

    def metrics(self) -> list[Metric]:
        """Accuracy and loss of every version, with the mean of random sets as floor and the
        unaltered model as baseline."""
        metrics = []
        for measure in MEASURES:
            random = self.readings.mean(self.randoms, measure)
            original = self.readings.mean(["original"], measure)
            for version in self.readings.names:
                metrics.append(
                    self.readings.mean([version], measure).metric(
                        f"{version.replace(' ', '_')}_{measure}",
                        UNITS[measure],
                        self.n,
                        random if version == "group" else None,
                        original,
                    )
                )
        return metrics

    def figure(self) -> go.Figure:
        """Accuracy and loss by pair with and without the group and the random sets."""
        from vit_clt.analysis.factors.suppression_figure import suppression_figure

        return suppression_figure(self)

    def _active(self, name: str) -> float:
        return float((self.activity[name] * self.counts).sum() / self.counts.sum())


@torch.no_grad()
def suppress(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    group: FeatureSet,
    *,
    randoms: Sequence[FeatureSet],
    region: Region = "cls",
    factors: tuple[str, str] = ("left", "right"),
    seed: int = 0,
    progress: bool = False,
) -> Suppression:
    """On every image, suppress the group, then each random set.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: labelled images that know both factors; not those that the group was chosen on.
        classifier: the readout.
        group: features by source layer (`Selectivity.features`).
        randoms: random sets to compare with (`Selectivity.matched`, several seeds).
        region: token rows on which codes are set to 0.
        factors: two names among `data.factors`.
        seed: seed of the bootstrap.
        progress: show a progress bar.

    Raises:
        InputError: a factor or region is unknown, there is no random set, a set is empty or out of
            range, a pair of values has fewer than two images or two labels, a label has no class
            name, or the CLT is of another model.
    """
    check_fits(vit, clt)
    check_prepared(vit, data)
    sets = compared_sets(clt, group, randoms)
    rows = region_rows(region, vit.cfg.rows)
    edits = {
        name: [
            Edit(s, tuple(features.tolist()), "scale", 0, tuple(rows.tolist()))
            for s, features in feature_set.items()
        ]
        for name, feature_set in sets.items()
    }
    a, b = (factor_values(data, name) for name in factors)
    all_labels = torch.cat([labels for _, labels in data])
    classifier.check_labels(all_labels)
    cells = Cells(a, b, all_labels.numpy(), factors)
    outcomes: dict[str, list[Outcome]] = {"original": [], **{name: [] for name in sets}}
    active: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    layers = sorted({s for feature_set in sets.values() for s in feature_set})
    n_active = 0
    with Progress(total=len(data), desc="suppress", unit=" images", disable=not progress) as bar:
        for images, labels in data:
            images = images.to(clt.b_enc.device)
            unaltered = SteeredPass(vit, clt, images)
            outcomes["original"].append(classifier.read(unaltered.embeddings, labels))
            codes = active_codes(vit, clt, images, rows, layers)
            n_active += sum(int(rows_active.sum()) for rows_active in codes.values())
            fires = {s: rows_active.any(1) for s, rows_active in codes.items()}
            for name, feature_set in sets.items():
                outcomes[name].append(classifier.read(unaltered.steered(edits[name]), labels))
                counts = sum(fires[s][:, features].sum(1) for s, features in feature_set.items())
                active[name].append(counts.cpu().numpy())  # type: ignore[union-attr]
            bar.update(len(images))

    def by_cell(per_image: np.ndarray) -> np.ndarray:
        sums = np.bincount(cells.cell, per_image, len(cells.counts))
        return (sums / cells.counts).reshape(cells.shape)

    def gathered(name: str, field: str) -> np.ndarray:
        return torch.cat([getattr(o, field) for o in outcomes[name]]).double().numpy()

    l0 = n_active / (len(data) * len(rows) * len(layers))
    return Suppression(
        readings=gather_readings(outcomes, seed),
        correct={name: by_cell(gathered(name, "correct")) for name in outcomes},
        loss={name: by_cell(gathered(name, "loss")) for name in outcomes},
        activity={name: by_cell(np.concatenate(parts)) for name, parts in active.items()},
        counts=cells.counts.reshape(cells.shape).astype(float),
        values=(cells.values[0].tolist(), cells.values[1].tolist()),
        factors=factors,
        **measured_on(group, randoms, region, l0, classifier, data, seed),
    )
