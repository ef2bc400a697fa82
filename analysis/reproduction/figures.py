"""Figures of the paper's evaluation: three sparsifiers of one teacher on shared axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.fit.reconstruction_study import Reconstruction
from vit_clt.analysis.reporting.levels import LEVELS, add_levels, add_points
from vit_clt.analysis.reporting.style import BLUE, GREEN, ORANGE, ROW_NAMES, finish
from vit_clt.analysis.reproduction.cells import KINDS, SPARSIFIER_NAMES
from vit_clt.analysis.reproduction.comparison import FinishedCell
from vit_clt.analysis.reproduction.published import baseline_of, paper_baselines, paper_cascade
from vit_clt.transcoder.sparsifiers import SPARSIFIERS

_MARKS = ((GREEN, "diamond"), (BLUE, "circle"), (ORANGE, "square"))
STYLES = {
    name: (SPARSIFIERS[name].label, *mark)
    for name, mark in zip(SPARSIFIER_NAMES, _MARKS, strict=True)
}
"""Name, colour and marker of a sparsifier, the same in all figures."""


def replacement_comparison(group: Sequence[FinishedCell]) -> go.Figure:
    """Top-1 against the first layer replaced, ours and the paper's (dotted); below, ours minus it.

    Args:
        group: finished cells of one data set and backbone.
    """
    cell = group[0].cell
    figure = make_subplots(
        rows=2,
        cols=len(KINDS),
        shared_yaxes=True,
        shared_xaxes=True,
        subplot_titles=[ROW_NAMES[kind] for kind in KINDS],
        row_heights=[0.6, 0.4],
        horizontal_spacing=0.03,
        vertical_spacing=0.06,
    )
    paper = paper_cascade().query("dataset == @cell.dataset and backbone == @cell.backbone")
    published = baseline_of(paper_baselines(), cell.dataset, cell.backbone)
    for column, kind in enumerate(KINDS, start=1):
        stream = [
            each.cascade[(each.cascade["tokens"] == kind) & (each.cascade["inputs"] == "stream")]
            for each in group
        ]
        layers = stream[0]["first_layer"].tolist()
        shown = column == 1
        for each, rows in zip(group, stream, strict=True):
            label, colour, symbol = STYLES[each.cell.sparsifier]
            series: dict[str, Any] = {"colour": colour, "legendgroup": label, "col": column}
            add_points(
                figure,
                rows["first_layer"].tolist(),
                tuple(100 * rows[name] for name in ("top1", "top1_low", "top1_high")),
                name=f"{label}, L0 {each.facts['l0']:.0f}",
                symbol=symbol,
                hover=f"{label}, from %{{x}}: %{{y:.2f}}",
                legend=shown,
                row=1,
                **series,
            )
            theirs = paper[
                (paper["sparsifier"] == each.cell.sparsifier) & (paper["tokens"] == kind)
            ]
            add_points(
                figure,
                theirs["first_layer"].tolist(),
                (theirs["top1_percent"],),
                name=f"{label}, paper",
                dash="dot",
                symbol=f"{symbol}-open",
                hover=f"{label}, paper, from %{{x}}: %{{y:.2f}}",
                legend=shown,
                row=1,
                **series,
            )
            apart = 100 * rows.set_index("first_layer")[["top1", "top1_low", "top1_high"]]
            # NaN where only one side has the range
            apart = apart.sub(theirs.set_index("first_layer")["top1_percent"], axis=0).dropna()
            add_points(
                figure,
                apart.index.tolist(),
                tuple(apart[name] for name in ("top1", "top1_low", "top1_high")),
                name=label,
                symbol=symbol,
                hover=f"{label}, from %{{x}}: %{{y:+.2f}}",
                row=2,
                **series,
            )
        levels = {
            LEVELS["original"]: 100 * stream[0]["baseline"],
            LEVELS["published"]: published,
            LEVELS["floor_mean"]: 100 * stream[0]["floor_mean"],
            LEVELS["floor_zero"]: 100 * stream[0]["floor_zero"],
        }
        add_levels(figure, layers, levels, legend=shown, row=1, col=column)
    last = int(group[0].cascade["last_layer"].iloc[0])
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text=f"first layer s replaced (s to {last})", row=2)
    figure.update_yaxes(title_text="zero-shot accuracy (%)", row=1, col=1)
    figure.update_yaxes(title_text="ours − paper (points)", row=2, col=1)
    facts, recipe = group[0].facts, group[0].recipe
    smoke = "<b>SMOKE RUN, NUMBERS MEAN NOTHING</b><br>" if recipe["smoke"] else ""
    figure.update_layout(
        title={
            "text": f"Layers s to {last} replaced: {cell.dataset}, {cell.backbone}<br><sup>{smoke}"
            f"{facts['measured_on']['name']}, N = {facts['n']}, stream inputs<br>templates: "
            f"{recipe['templates']}, seed {recipe['training']['seed']}; bars: 95 % bootstrap over "
            "images</sup>"
        },
        width=1000,
        height=780,
        legend={"orientation": "h", "y": -0.1},
    )
    return finish(figure).update_layout(margin={"t": 140})


def reconstruction_comparison(group: Sequence[FinishedCell]) -> go.Figure:
    """Reconstruction per layer, the sparsifiers overlaid.

    Args:
        group: finished cells of one data set and backbone.
    """
    smoke = "SMOKE RUN, " if group[0].recipe["smoke"] else ""
    results = {}
    for each in group:
        name = smoke + STYLES[each.cell.sparsifier][0]
        data, seed = each.facts["measured_on"]["name"], each.recipe["training"]["seed"]
        results[name] = Reconstruction(each.reconstruction, data, seed, clt=name)
    first = results.pop(next(iter(results)))
    return replace(first, compared=results).figure()
