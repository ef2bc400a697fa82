"""The paper's tables as they are shipped, against its text; checks that they fail or hold."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_clt.analysis.reproduction.published import (
    Check,
    baseline_of,
    can_be_of,
    checks,
    inconsistencies,
    paper_baselines,
    paper_cascade,
    paper_faithfulness,
)

SHORT = {"JR": "jumprelu", "RTK": "relu_topk", "ATK": "abs_topk"}
NAMES = {"CIFAR-100": "cifar100", "COCO": "coco", "ImageNet-100": "imagenet100"}
KINDS = {"CLS": "cls", "Patches": "patch", "All": "all"}


def about(rule: str, found: list[Check]) -> list[Check]:
    return [check for check in found if rule in check.rule]


@pytest.fixture(scope="module")
def supplement() -> str:
    folder = os.environ.get("VIT_CLT_DATA")
    path = Path(folder or ".") / "paper" / "supplementary.md"
    if folder is None or not path.is_file():
        pytest.skip("VIT_CLT_DATA names no folder with the paper's supplement")
    return path.read_text()


def test_every_table_is_whole() -> None:
    cascade = paper_cascade()
    assert cascade["table"].unique().tolist() == list(range(6, 24))
    assert (cascade.groupby("table").size() == 36).all()
    settings = cascade.groupby("table")[["dataset", "backbone", "tokens"]].nunique()
    assert (settings == 1).all(axis=None)
    assert not cascade.duplicated(
        ["dataset", "backbone", "tokens", "first_layer", "sparsifier"]
    ).any()
    assert cascade["top1_percent"].between(30, 90).all()
    assert len(paper_baselines()) == 6
    assert not paper_baselines().isna().any(axis=None)


def test_table_5_is_read_as_numbers() -> None:
    table = paper_faithfulness().set_index(["tokens", "first_layer"])
    assert table.loc[("cls", 0), "delta_top1_points"] == 0.07
    assert table.loc[("patch", 0), "delta_top1_points"] == -11.1
    assert table.loc[("patch", 10), "prompt_kl"] == 0.002
    assert table.drop(columns=["dataset", "backbone"]).map(np.isfinite).all(axis=None)


def test_cascade_is_that_of_the_supplement(supplement: str) -> None:
    ours = paper_cascade().set_index(["table", "first_layer", "sparsifier"])
    read = 0
    for block in re.split(r"\n(?=Table \d+\. Top-1)", supplement)[1:]:
        number, dataset, backbone, tokens = re.match(
            r"Table (\d+)\. .*? on (\S+) for (\S+) with (\S+) tokens", block
        ).groups()
        b32, b16 = re.search(r"ViT-B/32: ([\d.]+) and ViT-B/16: ([\d.]+)\.", block).groups()
        baseline = baseline_of(paper_baselines(), NAMES[dataset], backbone)
        assert baseline == float(b32 if backbone == "ViT-B/32" else b16)
        for first, *values in re.findall(
            r"^(\d+)→11\t([\d.]+)\t([\d.]+)\t([\d.]+)$", block, re.MULTILINE
        ):
            for name, value in zip(SHORT.values(), values, strict=True):
                row = ours.loc[(int(number), int(first), name)]
                assert row["top1_percent"] == float(value)
                assert (row["dataset"], row["backbone"]) == (NAMES[dataset], backbone)
                assert row["tokens"] == KINDS[tokens]
                read += 1
    assert read == len(ours) == 648


def test_table_5_is_that_of_the_supplement(supplement: str) -> None:
    pattern = r"^(\d+)(?:-(\d+))? \^\{(CLS|Patches)\}\t(.*)$"
    rows = re.findall(pattern, supplement, re.MULTILINE)
    ours = paper_faithfulness()
    assert len(rows) == len(ours) == 7
    for (first, last, tokens, rest), row in zip(rows, ours.itertuples(index=False), strict=True):
        values = [float(value.rstrip("%")) for value in rest.split("\t")]
        assert list(row)[5:] == values
        assert (row.first_layer, row.last_layer) == (int(first), int(last or first))
        assert row.tokens == KINDS[tokens]


def test_what_is_inconsistent_is_found() -> None:
    wrong = inconsistencies()
    (no_op,) = about("patch rows of the last layer", wrong)
    assert "coco ViT-B/16" in no_op.where
    assert no_op.mismatch == pytest.approx(0.06)
    (falls,) = about("improves as more layers", wrong)
    assert "18 of 18" in falls.outcome
    assert falls.mismatch == pytest.approx(80.42 - 60.26)
    (table_5,) = about("Accuracy changes of table 5", wrong)
    assert table_5.mismatch == pytest.approx(11.1 - (61.65 - 51.12))
    assert "relu_topk misses by up to 0.57" in table_5.outcome
    assert len(about("near-identical", wrong)) == 1
    assert len(wrong) == 4


def test_a_missing_baseline_is_said() -> None:
    known = paper_baselines().query("dataset != 'imagenet100'")
    found = about("patch rows of the last layer", checks(baselines=known))
    missing = [check for check in found if "imagenet100" in check.where]
    assert [check.holds for check in missing] == [None, None]
    assert all("no baseline" in check.outcome for check in missing)
    assert np.isnan(baseline_of(known, "imagenet100", "ViT-B/32"))


def test_checks_notice_changed_tables() -> None:
    cascade, table_5 = paper_cascade(), paper_faithfulness()
    last = (cascade["table"] == 8) & (cascade["first_layer"] == 11)
    cascade.loc[last, "top1_percent"] += 1.0
    (equal,) = about("equals replacing its CLS rows", checks(cascade=cascade))
    assert equal.holds is False
    assert equal.mismatch == pytest.approx(1.0)
    table_5.loc[0, "flip_percent"] += 2
    assert about("sum to 100", checks(faithfulness=table_5))[0].mismatch == pytest.approx(2)
    table_5.loc[6, "delta_top1_points"] = -9.0
    assert not about("cannot change by more", checks(faithfulness=table_5))[0].holds
    table_5.loc[0, "kl"] = 0.036
    assert about("Section 8", checks(faithfulness=table_5))[0].mismatch == 1
    # a paper without faults has none
    baselines = paper_baselines()
    baselines.loc[3, "top1_percent"] = 43.50
    rule = "patch rows of the last layer"
    assert all(check.holds for check in about(rule, checks(baselines=baselines)))


def test_conclusions_follow_from_the_tables() -> None:
    rule = "improves as more layers"
    cascade = paper_cascade()
    patch = cascade["tokens"] == "patch"
    column = patch & (cascade["table"] == 7) & (cascade["sparsifier"] == "relu_topk")

    def change_of(which: np.ndarray) -> float:
        first, last = (
            float(cascade.loc[which & (cascade["first_layer"] == layer), "top1_percent"].iloc[0])
            for layer in (0, 11)
        )
        return first - last

    # one column that rises far: the average of the falls must not feel it
    settings = cascade[patch].groupby(["table", "sparsifier"]).size().index
    assert column.sum() == 12
    cascade.loc[column & (cascade["first_layer"] == 0), "top1_percent"] = 99.0
    assert change_of(column) > 0
    changes = [
        change_of(patch & (cascade["table"] == table) & (cascade["sparsifier"] == name))
        for table, name in settings
    ]
    falls = [-change for change in changes if change < 0]
    (mixed,) = about(rule, checks(cascade=cascade))
    assert mixed.holds is False
    assert mixed.outcome == (
        f"accuracy falls in 17 of 18 columns, by {np.mean(falls):.1f} points there on average and "
        f"up to {max(falls):.1f}"
    )
    # the paper as its text has it
    cascade.loc[patch, "top1_percent"] = 80.0 - cascade.loc[patch, "first_layer"]
    (held,) = about(rule, checks(cascade=cascade))
    assert (held.holds, held.mismatch) == (True, 0)
    assert held.outcome == "accuracy falls in 0 of 18 columns"

    table_5 = paper_faithfulness()
    table_5.loc[6, "delta_top1_points"] = table_5.loc[6, "flip_percent"] + 2
    (more,) = about("cannot change by more", checks(faithfulness=table_5))
    assert (more.holds, more.outcome) == (False, "it changes by up to 2.0 points more")


def test_table_5_fits_where_it_was_made_from_the_others() -> None:
    cascade, table_5 = paper_cascade(), paper_faithfulness()
    keys = ["dataset", "backbone", "tokens", "first_layer"]
    own = table_5.merge(cascade.query("sparsifier == 'abs_topk'"), on=keys)
    table_5["delta_top1_points"] = (own["top1_percent"] - 61.65).to_numpy()
    (check,) = about("Accuracy changes of table 5", checks(faithfulness=table_5))
    assert check.holds
    assert check.outcome.startswith("abs_topk fits: abs_topk misses by up to 0.00")


@given(st.integers(1, 20_000), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_shares_of_n_images_are_recognised(n: int, shares: list[float]) -> None:
    percents = [round(100 * round(share * n) / n, 2) for share in shares]
    assert can_be_of(percents, n)


def test_coco_was_measured_on_all_5000_images() -> None:
    coco = paper_cascade().query("dataset == 'coco'")["top1_percent"]
    assert can_be_of(coco, 5000)
    assert not can_be_of(coco, 4952)
