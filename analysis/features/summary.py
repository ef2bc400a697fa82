"""A few numbers on all features of a layer, beside those that random images would give."""

from __future__ import annotations

import pandas as pd

from vit_clt.metrics import Metric

PURE = 0.75
"""Lowest purity at which a feature counts as pure."""


def summary(frame: pd.DataFrame, top: int) -> pd.DataFrame:
    """One row per layer, from `FeatureStatistics.to_frame`; shares are fractions.

    `active` is the share of features that are active on any image. Over those features,
    `image_rate` is the median share of images they are active on, and `purity` and
    `purity_by_chance` are means. `effect` is the largest centred direct effect on a class logit,
    NaN where none was measured. The other columns say whether a feature raises the class that it
    fires on. `pure` counts features with a purity of at least 0.75 that are active on `top` images
    or more and have effects that are not all 0. `raise_own` is the share of them that raise the
    class of their top images most, and `raise_own_by_chance` is that share if both classes were
    independent: the sum over classes c of (share whose top images are c) (share that raise c most).
    Both are NaN where no feature is pure.

    Args:
        frame: the statistics of the features of some layers.
        top: number of images that purity is computed from.
    """
    rows = []
    for layer, features in frame.groupby("layer"):
        active = features[features["active_images"] > 0]
        rows.append(
            {
                "layer": layer,
                "features": len(features),
                "active": len(active) / len(features),
                "image_rate": active["image_rate"].median(),
                "purity": active["purity"].mean(),
                "purity_by_chance": active["purity_by_chance"].mean(),
                "effect": active["effect"].max() if "effect" in active else float("nan"),
                "l0": features["l0"].iloc[0],
                **_raise_own(active, top),
            }
        )
    return pd.DataFrame(rows)


def _raise_own(active: pd.DataFrame, top: int) -> dict[str, float | int]:
    pure = active[(active["purity"] >= PURE) & (active["active_images"] >= top)]
    if "raised" not in pure:
        pure = pure[:0].assign(raised="")
    # in a frame that was read from a file, no class is NaN
    pure = pure[pure["raised"].fillna("") != ""]
    nothing = float("nan")
    if pure.empty:
        return {"pure": 0, "raise_own": nothing, "raise_own_by_chance": nothing}
    fires_on, raised = (pure[name].value_counts(normalize=True) for name in ("class", "raised"))
    return {
        "pure": len(pure),
        "raise_own": float((pure["class"] == pure["raised"]).mean()),
        "raise_own_by_chance": float(fires_on.mul(raised, fill_value=0).sum()),
    }


def summary_metrics(table: pd.DataFrame, n: int) -> list[Metric]:
    """The columns of `summary` as metrics.

    The floor of purity is the purity of images drawn at random; the floor of `raise_own` is its
    value for independent classes.
    """
    metrics = []
    for row in table.to_dict("records"):
        s = row["layer"]
        metrics += [
            Metric(f"active_features_{s}", row["active"], "fraction", n),
            Metric(f"median_image_rate_{s}", row["image_rate"], "fraction", n),
            Metric(f"mean_purity_{s}", row["purity"], "fraction", n, floor=row["purity_by_chance"]),
            Metric(f"pure_features_{s}", row["pure"], "count", n),
            Metric(
                f"pure_raise_own_class_{s}",
                row["raise_own"],
                "fraction",
                n,
                floor=row["raise_own_by_chance"],
            ),
        ]
    return metrics


def summary_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `summary` as text, shares in percent."""
    percent = {"active": "active %", "image_rate": "images % (median)", "purity": "purity %"}
    shown = pd.DataFrame({"layer": table["layer"], "features": table["features"]})
    for column, title in percent.items():
        shown[title] = [_percent(value) for value in table[column]]
    shown["by chance %"] = [_percent(value) for value in table["purity_by_chance"]]
    shown["largest effect, logits"] = [
        "not measured" if pd.isna(value) else f"{value:+.3f}" for value in table["effect"]
    ]
    shown["pure"] = table["pure"]
    shown["raise own class %"] = [_percent(value) for value in table["raise_own"]]
    shown["if independent %"] = [_percent(value) for value in table["raise_own_by_chance"]]
    shown["L0"] = [f"{value:.1f}" for value in table["l0"]]
    return shown


def _percent(value: float | int) -> str:
    return "undefined" if pd.isna(value) else f"{100 * value:.1f}"
