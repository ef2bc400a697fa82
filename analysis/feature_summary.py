"""All features of a layer in a few numbers, beside what random images would give."""

from __future__ import annotations

import pandas as pd

from vit_clt.metrics import Metric


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a layer, from `FeatureStatistics.to_frame`; shares are fractions.

    `active`: share of features active on any image. Over those: `image_rate`, the median share of
    images they are active on; `purity` and `purity_by_chance`, means. `effect`: the largest
    centred direct effect on a class logit, NaN where none was measured.
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
            }
        )
    return pd.DataFrame(rows)


def summary_metrics(table: pd.DataFrame, n: int) -> list[Metric]:
    """The same by name; the floor of purity is that of images drawn at random."""
    found = []
    for row in table.to_dict("records"):
        s = row["layer"]
        found += [
            Metric(f"active_features_{s}", row["active"], "fraction", n),
            Metric(f"median_image_rate_{s}", row["image_rate"], "fraction", n),
            Metric(f"mean_purity_{s}", row["purity"], "fraction", n, floor=row["purity_by_chance"]),
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
    shown["L0"] = [f"{value:.1f}" for value in table["l0"]]
    return shown


def _percent(value: float | int) -> str:
    return "undefined" if pd.isna(value) else f"{100 * value:.1f}"
