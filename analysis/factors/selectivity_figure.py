"""What features tell of two factors, by layer: how many of each kind, and how it is shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, finish
from vit_clt.errors import InputError
from vit_clt.hooks.rows import REGION_NAMES

if TYPE_CHECKING:
    from vit_clt.analysis.factors.selectivity import Selectivity

_COLOURS = (BLUE, ORANGE, PURPLE, GREEN, INK, FAINT)
_PATTERNS = ("", "", "/", "", "x", "")


def selectivity_figure(results: Sequence[Selectivity]) -> go.Figure:
    """Features of each kind and mean shares by layer, a row of panels per region.

    Raises:
        InputError: no result, or results that differ in data or factors.
    """
    if not results:
        raise InputError("results", "is empty; expected at least one.")
    first = results[0]
    for each in results[1:]:
        if (each.data, each.n, each.factors) != (first.data, first.n, first.factors):
            raise InputError(
                "results",
                f"holds {each.data}, N = {each.n}, factors {each.factors}; expected those "
                f"of the first, {first.data}, N = {first.n}, factors {first.factors}.",
            )
    titles = ("features of each kind", "what determines them (shares)")
    figure = make_subplots(
        rows=len(results),
        cols=2,
        subplot_titles=[f"{REGION_NAMES[r.region]} · {title}" for r in results for title in titles],
        horizontal_spacing=0.09,
        vertical_spacing=0.3 / len(results),
    )
    a, b = first.factors
    lines = (
        ("share_a", f"{a} alone", BLUE, "circle"),
        ("share_b", f"{b} alone", ORANGE, "square"),
        ("share_inter", "only both together", GREEN, "diamond"),
        ("share_label", "by the label (part of it)", INK, "x"),
    )
    for i, result in enumerate(results, start=1):
        counts = result.counts()
        shown = result.kinds[:-1]
        for kind, colour, pattern in zip(shown, _COLOURS, _PATTERNS, strict=True):
            figure.add_trace(
                go.Bar(
                    x=counts["layer"].tolist(),
                    y=counts[kind].tolist(),
                    name=f"{kind}",
                    legendgroup=kind,
                    showlegend=i == 1,
                    marker={"color": colour, "pattern": {"shape": pattern}},
                    hovertemplate=f"{kind}, layer %{{x}}: %{{y}}<extra></extra>",
                ),
                row=i,
                col=1,
            )
        telling = result.frame[~result.frame["kind"].isin(["none", "rare"])]
        means = telling.groupby("layer")[[name for name, *_ in lines]].mean()
        for name, label, colour, symbol in lines:
            figure.add_trace(
                go.Scatter(
                    x=means.index.tolist(),
                    y=means[name].tolist(),
                    mode="lines+markers",
                    name=label,
                    legendgroup=name,
                    showlegend=i == 1,
                    line={"color": colour, "dash": "dash" if name == "share_label" else "solid"},
                    marker={"symbol": symbol, "size": 7},
                    hovertemplate=f"{label}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
                ),
                row=i,
                col=2,
            )
        figure.update_yaxes(range=[-0.05, 1.05], row=i, col=2)
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text="layer", title_standoff=5, row=len(results))
    l0 = ", ".join(f"{r.l0:.1f} on {REGION_NAMES[r.region]}" for r in results)
    figure.update_layout(
        title={
            "text": f"What features tell of {a} and {b}<br><sup>{first.data}, N = {first.n}, "
            f"teacher trajectory, seed {first.seed}; L0 = {l0}<br>{a}, {b}: at least 2/3 of what "
            "both determine comes from that one alone; pair, label: more than half only from both "
            "together; mixed: the rest<br>two-way analysis of variance, floors of "
            f"{first.draws} draws, 5 % family-wise; active on fewer than 20 images: left out; "
            "right: means over features that tell of either</sup>"
        },
        barmode="stack",
        width=1000,
        height=230 + 290 * len(results),
        legend={"orientation": "h", "y": -60 / (290 * len(results)), "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 145})
