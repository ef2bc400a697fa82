"""The source paper's published numbers (arXiv 2604.13304), and checks of whether they agree.

The numbers are in `vit_clt/paper/*.csv`. Data sets have our names (cifar100, coco, imagenet100).
Numbers in percent stay in percent, and the column names say so: `_percent`, or `_points` for
differences of percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd
from jaxtyping import Float

DATASETS = {"cifar-100": "cifar100", "coco": "coco", "imagenet-100": "imagenet100"}
"""Our name of each data set of the paper's tables."""
TABLE_5 = ("cifar100", "ViT-B/32")
"""Data set and backbone of table 5; its sparsifier is not stated."""
ROUNDING = 0.005
"""Half a unit of the last printed digit, in percent points."""
_TABLE_5_COLUMNS = {
    "delta_acc": "delta_top1_points",
    "top1_agree_percent": "top1_agreement_percent",
    "top5_agree_percent": "top5_overlap_percent",
    "cos": "cosine",
}
_SETTING = ["dataset", "backbone", "sparsifier"]


@dataclass(frozen=True)
class Check:
    """One rule that the tables must satisfy, and by how much they miss it."""

    rule: str
    """The rule, and why it must hold."""
    where: str
    """Tables and rows that it was checked on."""
    outcome: str
    """The numbers in the tables."""
    holds: bool | None
    """Whether the rule holds; None where a number that it needs is missing."""
    mismatch: float | int = 0
    """The largest mismatch, in `unit`."""
    unit: str = "points"


def paper_cascade() -> pd.DataFrame:
    """Tables 6 to 23: top-1 with the layers first_layer to last_layer replaced.

    Columns: table, dataset, backbone, tokens, first_layer, last_layer, sparsifier, top1_percent.
    """
    frame = _read("cascaded_replacement.csv")
    return frame.assign(dataset=frame["dataset"].map(DATASETS))


def paper_baselines() -> pd.DataFrame:
    """Top-1 of the unaltered teachers, from the captions of the tables.

    Columns: dataset, backbone, top1_percent.
    """
    frame = _read("baselines.csv")
    return frame.assign(dataset=frame["dataset"].map(DATASETS))


def paper_faithfulness() -> pd.DataFrame:
    """Table 5: surrogate faithfulness by range of replaced layers.

    Columns: dataset, backbone, tokens, first_layer, last_layer, delta_top1_points, flip_percent, kl
    (nats), top1_agreement_percent, top5_overlap_percent, cosine, cka, spearman, prompt_r, prompt_kl
    (nats).
    """
    frame = _read("surrogate_faithfulness.csv").rename(columns=_TABLE_5_COLUMNS)
    # some numbers are printed as "+0.07" or ".034"
    numbers = frame.columns.drop("tokens")
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    frame.insert(0, "dataset", TABLE_5[0])
    frame.insert(1, "backbone", TABLE_5[1])
    return frame


def baseline_of(baselines: pd.DataFrame, dataset: str, backbone: str) -> float:
    """Top-1 of the unaltered teacher in percent; NaN where the paper gives none."""
    values = baselines.query("dataset == @dataset and backbone == @backbone")["top1_percent"]
    return float(values.iloc[0]) if len(values) else float("nan")


def can_be_of(percents: Iterable[float], n_images: int) -> bool:
    """Whether all these percentages, rounded to two digits, can be shares of `n_images` images."""
    values: Float[np.ndarray, " value"] = np.asarray(list(percents), dtype=float)
    nearest = 100 * np.round(values / 100 * n_images) / n_images
    return bool((np.abs(nearest - values) <= ROUNDING + 1e-9).all())


def checks(
    cascade: pd.DataFrame | None = None,
    baselines: pd.DataFrame | None = None,
    faithfulness: pd.DataFrame | None = None,
) -> list[Check]:
    """Every check of the tables, those that hold included.

    Args:
        cascade: tables to check; those of `paper_cascade` by default.
        baselines: top-1 of the teachers; those of `paper_baselines` by default.
        faithfulness: table 5; that of `paper_faithfulness` by default.
    """
    cascade = paper_cascade() if cascade is None else cascade
    baselines = paper_baselines() if baselines is None else baselines
    table_5 = paper_faithfulness() if faithfulness is None else faithfulness
    parts: list[Callable[[], list[Check]]] = [
        lambda: _no_op(cascade, baselines),
        lambda: _last_layer(cascade),
        lambda: _more_layers(cascade),
        lambda: _near_identical(cascade, baselines),
        lambda: _agreement(table_5),
        lambda: _quoted(table_5),
        lambda: _table_5_against_cascade(cascade, baselines, table_5),
    ]
    return [check for part in parts for check in part()]


def inconsistencies() -> list[Check]:
    """The checks that fail, or that cannot be decided for want of a number."""
    return [check for check in checks() if not check.holds]


def _no_op(cascade: pd.DataFrame, baselines: pd.DataFrame) -> list[Check]:
    """A model that pools CLS never reads the patch rows of the last layer."""
    last = cascade.query("tokens == 'patch' and first_layer == last_layer")
    results = []
    for (dataset, backbone), rows in last.groupby(["dataset", "backbone"], sort=False):
        value = baseline_of(baselines, dataset, backbone)
        gap = (rows["top1_percent"] - value).abs().max()
        layer = rows["last_layer"].iloc[0]
        results.append(
            Check(
                "Replacing patch rows of the last layer alone cannot change a model that reads its "
                "answer from CLS: the accuracy is the baseline",
                f"table {rows['table'].iloc[0]}, {dataset} {backbone}, patches {layer}→{layer}",
                f"{_values(rows)} against a baseline of {value:.2f}"
                if value == value
                else f"{_values(rows)}; the paper gives no baseline",
                None if value != value else bool(gap <= 2 * ROUNDING),
                0 if value != value else round(float(gap), 4),
            )
        )
    return results


def _last_layer(cascade: pd.DataFrame) -> list[Check]:
    """For the same reason replacing all rows or CLS rows makes no difference there."""
    last = cascade.query("first_layer == last_layer and tokens != 'patch'")
    wide = last.pivot_table(index=_SETTING, columns="tokens", values="top1_percent")
    gap = (wide["all"] - wide["cls"]).abs()
    return [
        Check(
            "Replacing all rows of the last layer alone equals replacing its CLS rows",
            f"tables {_tables(last)}, {len(wide)} pairs",
            f"largest difference {gap.max():.2f} points",
            bool(gap.max() <= 2 * ROUNDING),
            round(float(gap.max()), 4),
        )
    ]


def _more_layers(cascade: pd.DataFrame) -> list[Check]:
    """Section 11: patch accuracy "improves significantly as more layers are replaced"."""
    patch = cascade.query("tokens == 'patch'")
    columns = patch.groupby(_SETTING)
    change = pd.Series(
        {
            name: float(rows.loc[rows["first_layer"].idxmin(), "top1_percent"])
            - float(rows.loc[rows["first_layer"].idxmax(), "top1_percent"])
            for name, rows in columns
        }
    )
    falls = change[change < 0]
    text = f"accuracy falls in {len(falls)} of {len(change)} columns"
    if len(falls):
        text += f", by {-falls.mean():.1f} points there on average and up to {-falls.min():.1f}"
    if len(falls) == len(change):
        text += ": it improves as fewer layers are replaced"
    return [
        Check(
            "Section 11 says that on patch rows accuracy improves as more layers are replaced",
            f"tables {_tables(patch)}, {len(change)} columns, all layers against the last alone",
            text,
            not len(falls),
            round(max(0.0, float(-change.min())), 4),
        )
    ]


def _near_identical(cascade: pd.DataFrame, baselines: pd.DataFrame) -> list[Check]:
    """Section 11: CLS replacement is "near-identical or slightly better" everywhere."""
    merged = cascade.query("tokens == 'cls'").merge(
        baselines, on=["dataset", "backbone"], suffixes=("", "_baseline")
    )
    change = merged["top1_percent"] - merged["top1_percent_baseline"]
    worst = merged.loc[change.idxmin()]
    worse = change < -1
    return [
        Check(
            "Section 11 says that CLS replacement is near-identical or slightly better across all "
            "data sets and backbones (tried as: never more than 1 point below the baseline)",
            f"tables {_tables(merged)}, {len(merged)} numbers",
            f"{int(worse.sum())} are more than 1 point below, all of {_names(merged[worse])}; the "
            f"worst is {change.min():+.2f} ({worst['dataset']} {worst['backbone']}, "
            f"{worst['sparsifier']}, {worst['first_layer']}→{worst['last_layer']})"
            if worse.any()
            else f"the worst is {change.min():+.2f} points",
            not worse.any(),
            round(max(0.0, float(-change.min())), 4),
        )
    ]


def _agreement(table_5: pd.DataFrame) -> list[Check]:
    total = table_5["flip_percent"] + table_5["top1_agreement_percent"]
    gap = (total - 100).abs().max()
    excess = (table_5["delta_top1_points"].abs() - table_5["flip_percent"]).max()
    where = f"table 5, {len(table_5)} rows"
    return [
        Check(
            "Flip rate and top-1 agreement sum to 100 %",
            where,
            f"largest difference {gap:.2f} points",
            bool(gap <= 0.1 + 1e-9),
            round(float(gap), 4),
        ),
        Check(
            "Accuracy cannot change by more than the flip rate",
            where,
            f"it stays at least {-excess:.1f} points below"
            if excess <= 0
            else f"it changes by up to {excess:.1f} points more",
            bool(excess <= 0.1),
            round(max(0.0, float(excess)), 4),
        ),
    ]


def _quoted(table_5: pd.DataFrame) -> list[Check]:
    """The bounds of section 8 on the rows that it names: CLS ranges, and patches 10 to 11."""
    last = table_5["last_layer"].max()
    rows = table_5[(table_5["tokens"] == "cls") | (table_5["first_layer"] == last - 1)]
    holds = (rows["kl"] < 0.035) & (rows["cka"] > 0.94) & (rows["prompt_r"] > 0.98)
    return [
        Check(
            "Section 8 gives KL < 0.035, CKA > 0.94 and prompt r > 0.98 for CLS ranges and late "
            "patch replacement",
            f"table 5, {len(rows)} rows",
            f"KL up to {rows['kl'].max():.3f}, CKA from {rows['cka'].min():.3f}, r from "
            f"{rows['prompt_r'].min():.3f}",
            bool(holds.all()),
            int((~holds).sum()),
            "rows",
        )
    ]


def _table_5_against_cascade(
    cascade: pd.DataFrame, baselines: pd.DataFrame, table_5: pd.DataFrame
) -> list[Check]:
    """Table 5's accuracy changes must be those of tables 6 and 7 for one of the sparsifiers."""
    dataset, backbone = TABLE_5
    value = baseline_of(baselines, dataset, backbone)
    in_setting = cascade.query("dataset == @dataset and backbone == @backbone")
    keys = ["tokens", "first_layer", "last_layer"]
    merged = table_5.merge(in_setting, on=keys)
    merged["gap"] = (merged["top1_percent"] - value - merged["delta_top1_points"]).abs()
    worst = merged.groupby("sparsifier")["gap"].max().sort_values()
    best = worst.index[0]
    row = merged[merged["sparsifier"] == best].sort_values("gap").iloc[-1]
    misses = "; ".join(f"{name} misses by up to {gap:.2f}" for name, gap in worst.items())
    # -11.1 is printed with one digit less than the others
    fits = bool(worst.iloc[0] <= 0.05 + 2 * ROUNDING)
    return [
        Check(
            "Accuracy changes of table 5 are those of tables 6 and 7, for the sparsifier that it "
            "was made with (not stated)",
            f"table 5 against {_tables(in_setting[in_setting['tokens'] != 'all'])}, "
            f"{len(table_5)} ranges",
            f"{best if fits else 'no sparsifier'} fits: {misses} (best, {row['tokens']} "
            f"{row['first_layer']}→{row['last_layer']}: "
            f"{row['delta_top1_points']:+.2f} in table 5, "
            f"{row['top1_percent'] - value:+.2f} by table {row['table']})",
            fits,
            round(float(worst.iloc[0]), 4),
        )
    ]


def _read(name: str) -> pd.DataFrame:
    with (files("vit_clt.paper") / name).open(encoding="utf-8") as file:
        return pd.read_csv(file)


def _values(rows: pd.DataFrame) -> str:
    return ", ".join(f"{v:.2f}" for v in sorted(set(rows["top1_percent"])))


def _tables(rows: pd.DataFrame) -> str:
    numbers = [str(number) for number in sorted(set(rows["table"]))]
    return " and ".join(part for part in (", ".join(numbers[:-1]), numbers[-1]) if part)


def _names(rows: pd.DataFrame) -> str:
    return ", ".join(
        sorted({f"{r.dataset} {r.backbone} {r.sparsifier}" for r in rows.itertuples()})
    )
