"""Figures of the paper's evaluation: three sparsifiers of one teacher on shared axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.fit.reconstruction_study import Reconstruction
from vit_clt.analysis.reporting.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    ROW_NAMES,
    error_bars,
    finish,
)
from vit_clt.analysis.reproduction.cells import KINDS
from vit_clt.analysis.reproduction.comparison import FinishedCell
from vit_clt.analysis.reproduction.published import baseline_of, paper_baselines, paper_cascade
from vit_clt.transcoder.sparsifiers import AbsTopK, JumpReLU, ReLUTopK

STYLES = {
    "jumprelu": (JumpReLU.label, GREEN, "diamond"),
    "relu_topk": (ReLUTopK.label, BLUE, "circle"),
    "abs_topk": (AbsTopK.label, ORANGE, "square"),
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
            y, low, high = (100 * rows[name] for name in ("top1", "top1_low", "top1_high"))
            figure.add_trace(
                go.Scatter(
                    x=rows["first_layer"].tolist(),
                    y=y.tolist(),
                    error_y=error_bars(y, low, high),
                    name=f"{label}, L0 {each.facts['l0']:.0f}",
                    legendgroup=label,
                    showlegend=shown,
                    mode="lines+markers",
                    line={"color": colour},
                    marker={"symbol": symbol, "size": 7},
                    hovertemplate=f"{label}, from %{{x}}: %{{y:.2f}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            theirs = paper[
                (paper["sparsifier"] == each.cell.sparsifier) & (paper["tokens"] == kind)
            ]
            figure.add_trace(
                go.Scatter(
                    x=theirs["first_layer"].tolist(),
                    y=theirs["top1_percent"].tolist(),
                    name=f"{label}, paper",
                    legendgroup=label,
                    showlegend=shown,
                    mode="lines+markers",
                    line={"color": colour, "dash": "dot", "width": 1.5},
                    marker={"symbol": f"{symbol}-open", "size": 6},
                    hovertemplate=f"{label}, paper, from %{{x}}: %{{y:.2f}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            apart = 100 * rows.set_index("first_layer")[["top1", "top1_low", "top1_high"]]
            # NaN where only one side has the range
            apart = apart.sub(theirs.set_index("first_layer")["top1_percent"], axis=0).dropna()
            figure.add_trace(
                go.Scatter(
                    x=apart.index.tolist(),
                    y=apart["top1"].tolist(),
                    error_y=error_bars(apart["top1"], apart["top1_low"], apart["top1_high"]),
                    legendgroup=label,
                    showlegend=False,
                    mode="lines+markers",
                    line={"color": colour},
                    marker={"symbol": symbol, "size": 6},
                    hovertemplate=f"{label}, from %{{x}}: %{{y:+.2f}}<extra></extra>",
                ),
                row=2,
                col=column,
            )
        for label, values, colour, dash in (
            ("unaltered model", 100 * stream[0]["baseline"], INK, "solid"),
            ("unaltered, paper", pd.Series([published] * len(layers)), INK, "dot"),
            ("floor: MLP rows at mean", 100 * stream[0]["floor_mean"], PURPLE, "dashdot"),
            ("floor: at zero", 100 * stream[0]["floor_zero"], GREY, "longdash"),
        ):
            if not values.notna().any():
                continue
            figure.add_trace(
                go.Scatter(
                    x=layers,
                    y=values.tolist(),
                    name=label,
                    legendgroup=label,
                    showlegend=shown,
                    mode="lines",
                    line={"color": colour, "dash": dash, "width": 1.5},
                    hovertemplate=label + ": %{y:.2f}<extra></extra>",
                ),
                row=1,
                col=column,
            )
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
