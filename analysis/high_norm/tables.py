"""Numbers by layer and kind of rows, and the features that are active mostly on high-norm rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.high_norm.rule import CLS, HIGH, KINDS, ORDINARY, RANDOM
from vit_clt.analysis.high_norm.sums import CodeSums, RowSums
from vit_clt.analysis.stats.intervals import bootstrap_means, intervals

LEAST_ROWS = 10
"""A feature counts where it is active on this many patch rows or more; fewer say nothing of it."""


def kinds_frame(sums: RowSums, kinds: list[str], seed: int) -> pd.DataFrame:
    """A row for each layer and kind of rows.

    Args:
        sums: of both passes.
        kinds: names of `KINDS` that the model has.
        seed: of the bootstrap over images.
    """
    frames = [pd.DataFrame(_columns(sums, kind, seed)) for kind in kinds]
    frame = pd.concat([frame.rename_axis("layer").reset_index() for frame in frames])
    order = {kind: i for i, kind in enumerate(kinds)}
    return frame.sort_values(
        ["layer", "kind"], key=lambda c: c.map(order) if c.name == "kind" else c
    ).reset_index(drop=True)


def _columns(sums: RowSums, kind: str, seed: int) -> dict[str, Any]:
    groups = list(KINDS[kind])
    n_rows = sums.n_rows(groups).cpu().numpy()
    everything = sums.n_rows(KINDS["all"]).cpu().numpy()
    columns: dict[str, Any] = {"kind": kind, "rows": n_rows, "row_share": n_rows / everything}
    inside = np.isin(sums.survey.groups.numpy(), groups)
    for name, norms in sums.survey.norms.items():
        chosen = [layer[mask] for layer, mask in zip(norms.numpy(), inside, strict=True)]
        columns[f"{name}_median"] = [np.median(v) if v.size else np.nan for v in chosen]
        columns[f"{name}_max"] = [v.max() if v.size else np.nan for v in chosen]
    columns |= _share("spread", sums.spread, groups, seed)
    if sums.codes is not None:
        columns |= _share("error", sums.codes.error, groups, seed)
        columns["fvu"] = (1 - sums.r2(groups)).cpu().numpy()
        active = sums.codes.active[:, groups].sum(1).cpu().numpy()
        silent = (sums.codes.fired[:, groups].sum(1) == 0).double().mean(1).cpu().numpy()
        columns["l0"] = np.divide(
            active, n_rows, where=n_rows > 0, out=np.full(len(active), np.nan)
        )
        columns["silent"] = np.where(n_rows > 0, silent, np.nan)
    return columns


def _share(
    name: str, sums: Float[Tensor, "layer image group"], groups: list[int], seed: int
) -> dict[str, Any]:
    """Share of all rows' sum that lies on these groups, with the bootstrap over images."""
    part, whole = sums[:, :, groups].sum(2).cpu().numpy(), sums.sum(2).cpu().numpy()
    means = bootstrap_means(np.concatenate([part, whole]).T, seed)
    with np.errstate(invalid="ignore"):
        share = part.sum(1) / whole.sum(1)
        parts, wholes = np.split(means, 2, axis=1)
        low, high = intervals(parts / wholes)
    if part.shape[1] < 2:
        low, high = np.full_like(share, np.nan), np.full_like(share, np.nan)
    return {f"{name}_share": share, f"{name}_share_low": low, f"{name}_share_high": high}


def features_frame(sums: RowSums) -> pd.DataFrame:
    """A row for each feature that is active on at least `LEAST_ROWS` patch rows.

    Columns: layer, feature, patch_rows (active patch rows), share (the share of these that are
    high-norm), random_share (that are among the random rows, the floor), base (share of all patch
    rows that are high-norm, which is what a feature that does not tell them apart has), and the
    share of high-norm, ordinary and CLS rows on which it is active.
    """
    assert sums.codes is not None
    rows: list[pd.DataFrame] = []
    for layer, fired in enumerate(sums.codes.fired.cpu().numpy()):
        n_rows = sums.variation.n_rows[layer].cpu().numpy()
        rows.append(_features_of_layer(fired, n_rows).assign(layer=layer))
    frame = pd.concat(rows, ignore_index=True)
    return frame[["layer", *frame.columns.drop("layer")]]


def _features_of_layer(
    fired: Int[np.ndarray, "group feature"], n_rows: Float[np.ndarray, " group"]
) -> pd.DataFrame:
    on_patches = fired[list(KINDS["patch"])].sum(0)
    chosen = np.flatnonzero(on_patches >= LEAST_ROWS)
    active = on_patches[chosen]
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "feature": chosen,
                "patch_rows": active,
                "share": fired[HIGH, chosen] / active,
                "random_share": fired[RANDOM, chosen] / active,
                "base": n_rows[HIGH] / n_rows[list(KINDS["patch"])].sum(),
                "rate_high_norm": fired[HIGH, chosen] / n_rows[HIGH],
                "rate_ordinary": fired[[ORDINARY, RANDOM]][:, chosen].sum(0)
                / n_rows[[ORDINARY, RANDOM]].sum(),
                "rate_cls": fired[CLS, chosen] / n_rows[CLS],
            }
        )


def feature_counts(features: pd.DataFrame, codes: CodeSums) -> pd.DataFrame:
    """How many features of each layer are active on high-norm rows beyond their base rate.

    Columns: layer, features (those of `features_frame`), and the numbers whose share of active
    patch rows that are high-norm is "above" the base rate, more than half ("mostly"), and one
    ("exclusive"); those with "_random" are the same of the random rows.
    """
    counts = pd.DataFrame({"layer": range(len(codes.fired))}).set_index("layer")
    counts["features"] = features.groupby("layer").size()
    for ending, share in (("", features["share"]), ("_random", features["random_share"])):
        for name, chosen in (
            ("above", share > features["base"]),
            ("mostly", share > 0.5),
            ("exclusive", share == 1),
        ):
            counts[name + ending] = features[chosen].groupby("layer").size()
    return counts.fillna(0).astype(int).reset_index()
