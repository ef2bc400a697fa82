"""Measures of features by layer, the CLTs and their floors overlaid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import Level, add_levels, add_points
from vit_clt.analysis.reporting.style import GREY, INK, PURPLE, SERIES, finish

if TYPE_CHECKING:
    from vit_clt.analysis.measures.scores import FeatureScores

_PANELS = {
    "monosemanticity": "monosemanticity",
    "morans_i": "Moran's I",
    "box_overlap": "activation inside boxes",
    "mask_overlap": "activation inside outlines",
    "class_auc": "class AUC of single units",
    "stability": "stability over seeds",
    "effect": "effect on logits",
}
_FLOORS = (PURPLE, GREY, INK)
_COLUMNS = 3


def feature_scores_figure(scores: FeatureScores) -> go.Figure:
    """Means over the units of each layer; what CLTs are compared with is purple, grey and black."""
    panels = {n: t for n, t in _PANELS.items() if scores.units[n].notna().any()}
    panels |= {f"probe_{k}": f"probe AUC, k = {k}" for k in scores.ks}
    down = -(-len(panels) // _COLUMNS)
    figure = make_subplots(rows=down, cols=_COLUMNS, subplot_titles=list(panels.values()))
    layers = sorted(set(scores.units["layer"]))
    named: set[str] = set()
    for i, panel in enumerate(panels):
        place: dict[str, Any] = {"row": i // _COLUMNS + 1, "col": i % _COLUMNS + 1}
        for j, name in enumerate(scores.dictionaries):
            values = pd.Series([_value(scores, name, panel, layer) for layer in layers])
            if values.isna().all():
                continue
            is_clt = name in scores.clts
            colours = SERIES if is_clt else _FLOORS
            at = j if is_clt else j - len(scores.clts)
            add_points(
                figure,
                layers,
                (values,),
                name=name,
                colour=colours[at % len(colours)],
                hover=f"{name}, layer %{{x}}: %{{y:.3f}}",
                dash="solid" if is_clt else "dash",
                symbol="circle" if is_clt else "diamond-open",
                legend=name not in named,
                **place,
            )
            named.add(name)
        floor = scores.floor(scores.dictionaries[0], panel)
        add_levels(
            figure,
            [layers[0], layers[-1]] if len(layers) > 1 else layers,
            {Level("without knowledge", GREY, "dot"): floor},
            legend=i == 0,
            **place,
        )
    figure.update_xaxes(title_text="layer", title_standoff=4)
    height = 300 * down + 160
    figure.update_layout(
        title={"text": f"Feature scores<br><sup>{scores.data}, N = {scores.n}</sup>"},
        width=1100,
        height=height,
        legend={"orientation": "h", "y": -70 / (height - 160), "yanchor": "top"},
    )
    return finish(figure)


def _value(scores: FeatureScores, name: str, panel: str, layer: int) -> float:
    if panel.startswith("probe_"):
        return float(scores.probe(name, int(panel.removeprefix("probe_")), layer)["auc"])
    return float(scores.mean(name, panel, layer))
