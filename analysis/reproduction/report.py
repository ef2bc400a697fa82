"""The page of the paper's evaluation: our numbers beside the paper's, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

import pandas as pd

from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.reporting.style import ROW_NAMES
from vit_clt.analysis.reproduction.cells import KINDS, Recipe, cells
from vit_clt.analysis.reproduction.comparison import FinishedCell
from vit_clt.analysis.reproduction.figures import (
    STYLES,
    reconstruction_comparison,
    replacement_comparison,
)
from vit_clt.analysis.reproduction.plan import IMAGES
from vit_clt.analysis.reproduction.published import TABLE_5, can_be_of, checks, paper_cascade
from vit_clt.training.trainer import FREE

SMOKE = (
    "THIS IS A SMOKE RUN. A few images, a few features and a few steps show that everything runs. "
    "None of its numbers says anything about the paper, about CLTs or about this package."
)
LEAD = (
    "The evaluation of arXiv 2604.13304 (supplement, tables 5 to 23), run with vit-clt: CLTs "
    "in place of the MLPs of CLIP's ViT-B/32 and ViT-B/16."
)
COCO_IMAGES = 5_000
"""Images of COCO's 2017 validation split, with and without a box."""
READING = (
    "Differences are ours minus the paper's, in percent points unless a unit is named. Intervals "
    "are 95 % bootstrap over images: they hold neither the spread between trainings nor the "
    "paper's own, so a number of the paper outside is a difference to explain, not a refutation. "
    "Floors are the model with the same MLP rows at their mean over the images, or at zero: where "
    "a floor scores well, replacing these rows shows little. The paper gives no losses, floors or "
    "intervals; ours are there to read our own numbers by."
)
_MEASURES = {
    "delta_top1": ("Δ accuracy (points)", 100),
    "flip": ("flip rate (%)", 100),
    "kl": ("KL (nats)", 1),
    "top5_overlap": ("top-5 overlap (%)", 100),
    "cosine": ("cosine", 1),
    "cka": ("linear CKA", 1),
    "spearman": ("Spearman", 1),
    "prompt_r": ("prompt r", 1),
    "prompt_kl": ("prompt KL (nats)", 1),
}


def differences_from_paper(recipe: Recipe) -> list[str]:
    """A sentence on each setting that is not the paper's, or that the paper leaves open."""
    paper = Recipe()
    sentences = []
    if recipe.smoke:
        sentences.append(SMOKE)
    for name in ("n_features", "k"):
        ours, theirs = getattr(recipe, name), getattr(paper, name)
        if ours != theirs:
            shown = "16 times the width" if theirs is None else theirs
            sentences.append(f"{name} is {ours}; the paper has {shown}.")
    if recipe.limit is not None:
        sentences.append(
            f"Only the first {recipe.limit:,} images of either split; the paper uses all of them."
        )
    ours_train, paper_train = recipe.training_options(), paper.training_options()
    for name, value in ours_train.items():
        if value != paper_train[name] and name not in (*FREE, "backend", "seed"):
            sentences.append(
                f"Training: {name} is {value}; the paper's preset has {paper_train[name]}."
            )
    sentences += [
        f"Zero-shot templates: {recipe.templates}. The paper does not name its own; the table of "
        "baselines shows which set fits its numbers.",
        "Ours where the paper is silent: batch size, schedule, initialisation, normalisation, the "
        f"L0 that JumpReLU is steered to ({recipe.k}), and one label for a COCO image (the "
        "category of the largest summed box area; images without a box left out).",
    ]
    return sentences


def study_report(finished: Sequence[FinishedCell], comparison: pd.DataFrame, recipe: Recipe) -> str:
    """The page report.html as a string.

    Args:
        finished: the cells that `finished_cells` returns.
        comparison: the table that `comparison(finished)` returns.
        recipe: the recipe that the study was started with.
    """
    done = {one.cell for one in finished}
    missing = [cell.name for cell in cells() if cell not in done]
    head = Section(
        "Read this first",
        differences_from_paper(recipe),
        facts={
            "Cells": f"{len(finished)} of {len(finished) + len(missing)} finished",
            "Missing": "; ".join(missing) or "none",
            "Seed": str(recipe.training.seed),
        },
    )
    sections = [head]
    if finished:
        sections += [
            Section("In short", [READING], [summary(comparison)]),
            _baseline_section(finished, comparison),
            *(_group_section(group, comparison) for group in cells_by_teacher(finished)),
            _faithfulness_section(finished, comparison),
        ]
    sections.append(_paper_section())
    smoke = "SMOKE RUN: " if recipe.smoke else ""
    return render_report(f"{smoke}The paper's evaluation", LEAD, sections)


def cells_by_teacher(finished: Sequence[FinishedCell]) -> list[list[FinishedCell]]:
    """The cells by data set and backbone."""
    groups: dict[tuple[str, str], list[FinishedCell]] = {}
    for one in finished:
        groups.setdefault((one.cell.dataset, one.cell.backbone), []).append(one)
    return list(groups.values())


def summary(comparison: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with all layers replaced, one row per cell and token kind."""
    rows = comparison.query("measure == 'top1' and inputs == 'stream' and first_layer == 0")
    return pd.DataFrame(
        {
            "cell": f"{r.dataset} {r.backbone} {r.sparsifier}, {ROW_NAMES[r.tokens]}",
            "ours, %": _with_interval(r, 100),
            "paper, %": _number(r.paper, 100),
            "difference": _signed(r.difference, 100),
            "paper inside": _yes(r.paper_inside_interval),
            "unaltered, %": _number(r.baseline, 100),
            "at mean, %": _number(r.floor_mean, 100),
            "at zero, %": _number(r.floor_zero, 100),
            "loss, nats": f"{r.loss:.4f}",
            "L0": f"{r.l0:.1f}",
            "N": f"{r.n:,.0f}",
        }
        for r in rows.itertuples()
    )


def _baseline_section(finished: Sequence[FinishedCell], comparison: pd.DataFrame) -> Section:
    rows = comparison.query("measure == 'baseline_top1'")
    table = pd.DataFrame(
        {
            "unaltered teacher": f"{r.dataset} {r.backbone}, {r.templates}",
            "ours, %": _with_interval(r, 100),
            "paper, %": _number(r.paper, 100),
            "difference": _signed(r.difference, 100),
            "paper inside": _yes(r.paper_inside_interval),
            "loss, nats": f"{r.loss:.4f}",
            "N": f"{r.n:,.0f}",
        }
        for r in rows.itertuples()
    )
    facts_by_teacher = {(one.cell.dataset, one.cell.backbone): one.facts for one in finished}
    facts = {}
    for (dataset, backbone), known in facts_by_teacher.items():
        n_out = known["left_out"]
        left_out = f"; {n_out} images without a label left out" if n_out else ""
        facts[f"{dataset} {backbone}"] = (
            f"{known['teacher']['model']}, weights {known['teacher']['pretrained'] or 'random'}; "
            "trained on "
            f"{known['trained_on']['name']}, {known['trained_on']['n_images']:,} images; measured "
            f"on {known['measured_on']['name']}, N = {known['measured_on']['n_images']:,}{left_out}"
        )
    note = (
        "Look here first: where the unaltered teacher is not the paper's, nothing below is "
        "comparable. Each set of templates stands alone; the one nearer to the paper is likelier "
        "to be what it used."
    )
    return Section("Baselines and templates", [note], [table], facts=facts)


def _group_section(group: Sequence[FinishedCell], comparison: pd.DataFrame) -> Section:
    cell = group[0].cell
    rows = comparison.query(
        "measure == 'top1' and dataset == @cell.dataset and backbone == @cell.backbone"
    )
    tables = [
        _range_table(rows[(rows["tokens"] == kind) & (rows["inputs"] == inputs)], inputs)
        for kind in KINDS
        for inputs in dict.fromkeys(rows["inputs"])
    ]
    figures = [replacement_comparison(group), reconstruction_comparison(group)]
    smoke = [SMOKE] if group[0].recipe["smoke"] else []
    note = (
        "Accuracy in % with its interval / loss in nats; then the paper's accuracy and the "
        "difference in points, * where the paper's number lies outside our interval."
    )
    return Section(f"{cell.dataset}, {cell.backbone}", [*smoke, note], tables, figures)


def _range_table(rows: pd.DataFrame, inputs: str) -> pd.DataFrame:
    """A table like the paper's 6 to 23: a row per range, and columns of ours and the paper's."""
    numbers = rows["table"].dropna()
    name = ROW_NAMES[rows["tokens"].iloc[0]] + f", {inputs}"
    heading = name + (f" (table {numbers.iloc[0]:.0f})" if len(numbers) else "")
    columns: dict[str, dict[str, str]] = {}
    for r in rows.itertuples():
        span = f"{r.first_layer:.0f}→{r.last_layer:.0f}"
        row = columns.setdefault(span, {heading: span})
        label = STYLES[r.sparsifier][0]
        row[f"{label}, L0 {_mean_l0(rows, r.sparsifier):.0f}"] = (
            f"{_with_interval(r, 100)} / {r.loss:.4f}"
        )
        row[f"{label}, paper"] = _number(r.paper, 100)
        outside = "*" if r.paper_inside_interval is False else ""
        row[f"{label}, difference"] = _signed(r.difference, 100) + outside
        row["unaltered"] = f"{100 * r.baseline:.2f} / {r.loss_baseline:.4f}"
        row["at mean"] = f"{100 * r.floor_mean:.2f} / {r.loss_floor_mean:.4f}"
        row["at zero"] = f"{100 * r.floor_zero:.2f} / {r.loss_floor_zero:.4f}"
    return pd.DataFrame(list(columns.values()))


def _faithfulness_section(finished: Sequence[FinishedCell], comparison: pd.DataFrame) -> Section:
    """The section of table 5, with one row per cell, range and measure."""
    faithfulness = comparison[
        comparison["measure"].isin(_MEASURES) & comparison["sparsifier"].notna()
    ]
    tables = []
    for one in finished:
        cell = one.cell
        cell_rows = faithfulness.query(
            "dataset == @cell.dataset and backbone == @cell.backbone and "
            "sparsifier == @cell.sparsifier"
        )
        rows = []
        for r in cell_rows.itertuples():
            title, factor = _MEASURES[r.measure]
            span = f"{r.first_layer:.0f}→{r.last_layer:.0f}"
            rows.append(
                {
                    f"{cell.name}, N = {r.n:,.0f}": f"{ROW_NAMES[r.tokens]} {span}, {title}",
                    "ours": _with_interval(r, factor),
                    "paper": _number(r.paper, factor),
                    "difference": _signed(r.difference, factor),
                    "paper inside": _yes(r.paper_inside_interval),
                    "unaltered": _number(r.baseline, factor),
                    "at mean": _number(r.floor_mean, factor),
                    "at zero": _number(r.floor_zero, factor),
                }
            )
        if rows:
            tables.append(pd.DataFrame(rows))
    note = (
        f"Table 5 is of {TABLE_5[1]} on {TABLE_5[0]}; its sparsifier is not stated, so it stands "
        "beside each of ours there. Stream inputs. Linear CKA and Spearman have no interval."
    )
    return Section("Surrogate faithfulness (table 5)", [note], tables)


def _paper_section() -> Section:
    """The section of checks that the paper's own tables fail, which are computed here."""
    tried = checks()
    listed = [check for check in tried if not check.holds]
    table = pd.DataFrame(
        {
            "what must hold": check.rule,
            "where": check.where,
            "found": check.outcome,
            "by": "unknown" if check.holds is None else f"{check.mismatch:g} {check.unit}",
        }
        for check in listed
    )
    wrong = sum(check.holds is False for check in tried)
    counts = f"{len(tried) - len(listed)} hold and {wrong} do not"
    if unknown := len(listed) - wrong:
        counts += f"; {unknown} cannot be decided, for want of a number"
    paragraphs = [
        f"{len(tried)} checks of the paper's tables: {counts}. They need no model: they follow "
        "from how a ViT reads its answer, or from the text.",
        _coco_images(),
    ]
    return Section("The paper's own inconsistencies", paragraphs, [table] if listed else [])


def _coco_images() -> str:
    """A paragraph on the number of images that COCO's accuracies can be shares of."""
    coco = paper_cascade().query("dataset == 'coco'")["top1_percent"]
    sizes = (COCO_IMAGES, IMAGES["coco"][1])
    every, with_box = (can_be_of(coco, n) for n in sizes)
    whole, boxed = (f"{n:,}" for n in sizes)
    if every and with_box:
        counts, so = f"{whole} or {boxed}", "; they do not tell whether the others have a label"
    elif every:
        counts = whole
        so = ", so the paper seems to give every image a label, in a way it does not state"
    elif with_box:
        counts, so = boxed, ", so the paper seems to leave the others out"
    else:
        counts, so = f"neither {whole} nor {boxed}", ""
    return (
        f"COCO's accuracies can be shares of {counts} images. {boxed} of the {whole} validation "
        f"images have a box{so}."
    )


def _mean_l0(rows: pd.DataFrame, sparsifier: str) -> float:
    return float(rows.loc[rows["sparsifier"] == sparsifier, "l0"].mean())


def _with_interval(r: object, factor: int) -> str:
    value, low, high = (getattr(r, name) * factor for name in ("value", "low", "high"))
    digits = 2 if factor == 100 else 4
    if isnan(value):
        return "undefined"
    ends = "" if isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{value:.{digits}f}{ends}"


def _number(value: float, factor: int) -> str:
    return "none" if isnan(value) else f"{value * factor:.{2 if factor == 100 else 4}f}"


def _signed(value: float, factor: int) -> str:
    return "none" if isnan(value) else f"{value * factor:+.{2 if factor == 100 else 4}f}"


def _yes(inside: bool | None) -> str:
    return "none" if inside is None else "yes" if inside else "no"
