"""Direct effects as bars: by source layer, beside error nodes, patches and biases."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.graphs.effects import DirectEffects
from vit_clt.analysis.reporting.style import BLUE, GREEN, GREY, ORANGE, ZERO_LINE, finish
from vit_clt.choices import Norms

_ROW = 210  # pixels an image
_SUMS: dict[Norms, str] = {
    "held": "sum to its logit",
    "differentiated": "are first-order changes, and do not sum to its logit",
}


def direct_effects_figure(effects: DirectEffects, titles: Sequence[str], context: str) -> go.Figure:
    """One row of bars an image, which sum to its logit.

    Args:
        effects: what is drawn.
        titles: title of each image.
        context: what the effects were measured on, for the subtitle.
    """
    n_images, n_layers = effects.errors.shape[:2]
    layers = [str(l) for l in range(n_layers)]
    bias = effects.bias.groupby("image")["effect"].sum()
    rows = [
        f"{title}: {float(logit):.2f}" for title, logit in zip(titles, effects.logit, strict=True)
    ]
    top, bottom = 130, 95
    height = top + bottom + _ROW * n_images
    figure = make_subplots(
        rows=n_images,
        cols=1,
        shared_xaxes=True,
        subplot_titles=rows,
        vertical_spacing=min(0.4, 46 / (height - top - bottom)),
    )
    for i in range(n_images):
        shown = (
            ("features, by source layer", layers, effects.by_source[i].tolist(), BLUE),
            ("error nodes, by layer", layers, effects.errors[i].sum(-1).tolist(), ORANGE),
            ("patch embeddings", ["patches"], [float(effects.patches[i].sum())], GREEN),
            ("class token, positions, all biases", ["bias"], [float(bias[i])], GREY),
        )
        for name, x, y, colour in shown:
            figure.add_bar(
                x=x,
                y=y,
                name=name,
                legendgroup=name,
                offsetgroup="errors" if "error" in name else "others",
                showlegend=i == 0,
                marker={"color": colour},
                hovertemplate=f"{name}, %{{x}}: %{{y:.4g}}<extra></extra>",
                row=i + 1,
                col=1,
            )
    order = [*layers, "patches", "bias"]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    figure.update_xaxes(title_text="source layer s", row=n_images, title_standoff=6)
    figure.update_yaxes(title_text="logits", **ZERO_LINE)
    figure.update_layout(
        title={
            "text": "Direct effects on a logit, by where they come from<br><sup>"
            f"{context}<br>teacher trajectory, attention held, norms {effects.norms}: the "
            f"bars of a row {_SUMS[effects.norms]}<br>direct: through residual stream and "
            "attention, not by way of other features</sup>"
        },
        barmode="group",
        bargap=0.25,
        width=1000,
        height=height,
        legend={"orientation": "h", "y": -62 / (height - top - bottom), "yanchor": "top", "x": 0},
    )
    return finish(figure).update_layout(margin={"t": top, "b": bottom})
