"""All features of a layer in a few numbers, beside what random images would give."""

from __future__ import annotations

import pandas as pd

from vit_clt.metrics import Metric

PURE = 0.75
"""Purity from which a feature counts as one of a class."""


def summary(frame: pd.DataFrame, top: int) -> pd.DataFrame:
    """One row a layer, from `FeatureStatistics.to_frame`; shares are fractions.

    `active`: share of features active on any image. Over those: `image_rate`, the median share of
    images they are active on; `purity` and `purity_by_chance`, means. `effect`: the largest
    centred direct effect on a class logit, NaN where none was measured. Does what a feature fires
    on say what it raises? Of the `pure` features (purity of at least 0.75, active on `top` images
    or more, with effects that are not all 0) `raise_own` raise most the class of their top images;
    `raise_own_by_chance` of them would, were both classes independent: the sum over classes c of
    (share whose top images are c) (share that raise c most). NaN where there are none.

    Args:
        frame: of some layers.
        top: images that purity is read from.
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
    # a frame that was read from a file has NaN for no class
    pure = pure[pure["raised"].fillna("") != ""]
    nothing = float("nan")
    if pure.empty:
        return {"pure": 0, "raise_own": nothing, "raise_own_by_chance": nothing}
    own, raised = (pure[name].value_counts(normalize=True) for name in ("class", "raised"))
    return {
        "pure": len(pure),
        "raise_own": float((pure["class"] == pure["raised"]).mean()),
        "raise_own_by_chance": float(own.mul(raised, fill_value=0).sum()),
    }


def summary_metrics(table: pd.DataFrame, n: int) -> list[Metric]:
    """The same by name; the floor of purity is that of images drawn at random, of raising the own
    class that of independent classes."""
    found = []
    for row in table.to_dict("records"):
        s = row["layer"]
        found += [
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
    return found


def summary_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table made for reading, shares in percent."""
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
