"""Features switched off: which pairs of factor values does the model then get wrong?

The group's codes are 0 on a region's rows, everything else of the model stays
(`vit_clt.hooks.SteeredPass`). Beside it stand as many random other features of the same layers
that fire equally often, in several draws: what switching off features costs whatever they tell.
Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from tqdm import tqdm

from vit_clt.analysis.factors.anova import Cells
from vit_clt.analysis.factors.selectivity_study import factor_values
from vit_clt.analysis.factors.sets import FeatureSet, active_codes, compared_sets, overlap
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.names import layers_text
from vit_clt.analysis.stats.readings import MEASURES, UNITS, Readings, gather_readings
from vit_clt.choices import Region
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.hooks import Edit, HookedViT, SteeredPass, check_fits
from vit_clt.hooks.rows import REGION_NAMES, region_rows
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.zero_shot import Outcome, ZeroShot

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Suppression(Study):
    """The model without the group, and without each set of random features."""

    name = "suppression"

    readings: Readings
    """Versions "original", "group" and "random 0", "random 1", ..."""
    correct: dict[str, Float[np.ndarray, "a b"]]
    """Accuracy of each version by pair of values."""
    loss: dict[str, Float[np.ndarray, "a b"]]
    """Cross-entropy in nats, the same."""
    activity: dict[str, Float[np.ndarray, "a b"]]
    """Features of each set that are active an image (somewhere in the region), by pair."""
    counts: Float[np.ndarray, "a b"]
    """Images of each pair."""
    values: tuple[list[int], list[int]]
    """Of both factors."""
    factors: tuple[str, str]
    n_features: int
    """In the group, over all its layers."""
    overlap: float
    """Share of the group that a random set holds too, mean over sets."""
    layers: list[int]
    region: Region
    l0: float
    """Active features a row of the region and layer, over the layers that sets are of."""
    templates: str
    data: str
    split: str | None
    n: int
    seed: int

    @property
    def randoms(self) -> list[str]:
        """The versions without random features."""
        return [name for name in self.readings.names if name.startswith("random")]

    def follows(self, name: str = "group") -> float:
        """Spearman's rank correlation, over pairs, of a set's activity and the rise in loss.

        Does what breaks follow where the features are active? NaN where one of them is constant.
        """
        from scipy.stats import spearmanr  # takes a second to import

        rise = (self.loss[name] - self.loss["original"]).ravel()
        active = self.activity[name].ravel()
        if np.ptp(rise) == 0 or np.ptp(active) == 0:
            return float("nan")
        return float(spearmanr(active, rise).statistic)

    def to_frame(self) -> pd.DataFrame:
        """One row per version, and one for the mean over random sets: accuracy (a fraction), loss
        (nats), their changes paired with the unaltered model, and `follows`."""
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
        """Codes of the altered stream, in one region."""
        return Facts(
            self.data,
            self.n,
            self.region,
            "stream with error nodes",
            self.l0,
            split=self.split,
            fill="zero",
            seed=self.seed,
            more={
                "templates": self.templates,
                "factors": list(self.factors),
                "layers": self.layers,
                "n_features": self.n_features,
                "overlap": self.overlap,
            },
        )

    def caption(self) -> str:
        """What is switched off, where, and what it is compared with."""
        return (
            f"{self.data}, N = {self.n}: {self.n_features} features of layers "
            f"{layers_text(self.layers)} at 0 on {REGION_NAMES[self.region]} (L0 {self.l0:.1f}), "
            "CLT with error nodes, stream inputs; random: as many that fire equally often; "
            f"templates: {self.templates}, seed {self.seed}"
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
        """Loss of "group" less the mean over random sets, with its paired interval over images."""
        return self.readings.difference("group", self.randoms, "loss")

    def metrics(self) -> list[Metric]:
        """Accuracy and loss of every version; floor: random sets' mean, baseline: unaltered."""
        found = []
        for measure in MEASURES:
            random = self.readings.mean(self.randoms, measure)
            original = self.readings.mean(["original"], measure)
            for version in self.readings.names:
                found.append(
                    self.readings.mean([version], measure).metric(
                        f"{version.replace(' ', '_')}_{measure}",
                        UNITS[measure],
                        self.n,
                        random if version == "group" else None,
                        original,
                    )
                )
        return found

    def figure(self) -> go.Figure:
        """Accuracy and loss by pair before and after, of the group and of random sets."""
        from vit_clt.analysis.factors.suppression_figure import suppression_figure

        return suppression_figure(self)

    def _active(self, name: str) -> float:
        return float((self.activity[name] * self.counts).sum() / self.counts.sum())


@torch.no_grad()
def suppress(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    group: FeatureSet,
    *,
    randoms: Sequence[FeatureSet],
    region: Region = "cls",
    factors: tuple[str, str] = ("left", "right"),
    seed: int = 0,
    progress: bool = False,
) -> Suppression:
    """Switch the group off on every image, then each random set.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: labelled images that know both factors; not those the group was chosen on.
        zs: the zero-shot classifier.
        group: features by source layer (`Selectivity.features`).
        randoms: sets to compare with (`Selectivity.matched`, several seeds).
        region: rows on which they are 0.
        factors: names among `data.factors`.
        seed: of the bootstrap.
        progress: show a progress bar.

    Raises:
        InputError: an unknown factor or region, no random set, a set that is empty or out of range,
            a pair of values with fewer than two images or with two labels, a label without a
            class name, or a CLT of another model.
    """
    check_fits(vit, clt)
    check_prepared(vit, data)
    sets = compared_sets(clt, group, randoms)
    rows = region_rows(region, vit.cfg.patch_grid)
    edits = {
        name: [
            Edit(s, tuple(features.tolist()), "scale", 0, tuple(rows.tolist()))
            for s, features in each.items()
        ]
        for name, each in sets.items()
    }
    a, b = (factor_values(data, name) for name in factors)
    known = torch.cat([labels for _, labels in data])
    zs.check_labels(known)
    cells = Cells(a, b, known.numpy(), factors)
    outcomes: dict[str, list[Outcome]] = {"original": [], **{name: [] for name in sets}}
    active: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    layers = sorted({s for each in sets.values() for s in each})
    n_active = 0
    with tqdm(total=len(data), desc="suppress", unit=" images", disable=not progress) as bar:
        for images, labels in data:
            images = images.to(clt.b_enc.device)
            unaltered = SteeredPass(vit, clt, images)
            outcomes["original"].append(zs.read(unaltered.embeddings, labels))
            codes = active_codes(vit, clt, images, rows, layers)
            n_active += sum(int(each.sum()) for each in codes.values())
            fires = {s: each.any(1) for s, each in codes.items()}
            for name, each in sets.items():
                outcomes[name].append(zs.read(unaltered.steered(edits[name]), labels))
                counts = sum(fires[s][:, features].sum(1) for s, features in each.items())
                active[name].append(counts.cpu().numpy())  # type: ignore[union-attr]
            bar.update(len(images))

    def by_cell(per_image: np.ndarray) -> np.ndarray:
        sums = np.bincount(cells.cell, per_image, len(cells.counts))
        return (sums / cells.counts).reshape(cells.shape)

    def gathered(name: str, field: str) -> np.ndarray:
        return torch.cat([getattr(o, field) for o in outcomes[name]]).double().numpy()

    return Suppression(
        gather_readings(outcomes, seed),
        {name: by_cell(gathered(name, "correct")) for name in outcomes},
        {name: by_cell(gathered(name, "loss")) for name in outcomes},
        {name: by_cell(np.concatenate(each)) for name, each in active.items()},
        cells.counts.reshape(cells.shape).astype(float),
        (cells.values[0].tolist(), cells.values[1].tolist()),
        factors,
        sum(map(len, group.values())),
        overlap(group, randoms),
        sorted(group),
        region,
        n_active / (len(data) * len(rows) * len(layers)),
        zs.name,
        data.name,
        data.split,
        len(data),
        seed,
    )
