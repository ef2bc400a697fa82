"""Decoder norms: heatmaps of every connection, bars of the cross-layer shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from vit_clt.analysis.reporting.style import BLUE, ORANGE, PLATE, finish

if TYPE_CHECKING:
    from vit_clt.analysis.contributions.decoder_weights import DecoderNorms


def decoder_norms_figure(norms: DecoderNorms) -> go.Figure:
    """Norm per feature, share of the source's norm and effective features; below, the shares that
    cross layers, by source and by target.
    """
    layers = list(map(str, range(len(norms.norm))))
    panels = [
        ("norm of a feature, root mean square (raw units of y)", norms.rms, ".2g"),
        ("share of the source's squared norm", norms.source_share, ".2f"),
        ("effective share of features", norms.effective, ".2f"),
    ]
    figure = make_subplots(
        rows=2,
        cols=3,
        specs=[[{}, {}, {}], [{"colspan": 3}, None, None]],
        subplot_titles=[*(title for title, _, _ in panels), "squared norm that crosses layers"],
        horizontal_spacing=0.09,
        vertical_spacing=0.16,
        row_heights=[0.62, 0.38],
    )
    for j, (title, matrix, digits) in enumerate(panels, start=1):
        domain = figure.layout[f"xaxis{j if j > 1 else ''}"].domain
        heatmap = go.Heatmap(
            z=_cells(matrix),
            x=layers,
            y=layers,
            text=[
                ["" if v is None else f"{v:{digits}}".replace("0.", ".", 1) for v in row]
                for row in _cells(matrix)
            ],
            texttemplate="%{text}" if len(layers) <= 12 else None,
            textfont={"size": 10},
            colorscale="Viridis",
            zmin=0,
            colorbar={"x": domain[1] + 0.005, "y": 0.71, "len": 0.58, "thickness": 10},
            hovertemplate=f"{title}<br>target %{{y}}, source %{{x}}: %{{z:.4f}}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
        )
        figure.add_trace(heatmap, row=1, col=j)
    for label, values, colour in (
        ("of source s, written to later layers", norms.cross_layer_of_source, BLUE),
        ("into target l, from earlier layers", norms.cross_layer_of_target, ORANGE),
    ):
        bars = go.Bar(
            x=layers,
            y=[None if v != v else v for v in values.tolist()],
            name=label,
            marker_color=colour,
            hovertemplate=f"{label}<br>layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )
        figure.add_trace(bars, row=2, col=1)
    figure.update_xaxes(type="category", title_text="source layer s", showgrid=False, row=1)
    figure.update_yaxes(
        type="category", title_text="target layer l", autorange="reversed", showgrid=False, row=1
    )
    figure.update_xaxes(type="category", title_text="layer", row=2)
    figure.update_yaxes(title_text="share", range=[0, 1], row=2)
    figure.update_layout(
        title={
            "text": "Decoder norms: which layers do the weights connect?"
            f"<br><sup>{norms.clt}, {norms.n_features} features a layer; weights alone, no images: "
            "not how often or how strongly features fire.<br>Between sources norms compare only as "
            "far as their codes are of one size; between targets, up to the size of y.</sup>"
        },
        width=160 + 3 * max(400, 36 * len(layers)),
        height=620 + max(0, 30 * (len(layers) - 6)),
        plot_bgcolor=PLATE,
        legend={"x": 1, "xanchor": "right", "y": 0.335, "yanchor": "bottom", "orientation": "h"},
    )
    return finish(figure)


def _cells(matrix: Tensor) -> list[list[float | None]]:
    return [[None if v != v else v for v in row] for row in matrix.tolist()]
