"""By layer: the share of features that have a name, and how well it foretells where they fire."""

from __future__ import annotations

import html

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.features.names import CONTROLS, FeatureNames
from vit_clt.analysis.reporting.style import BLUE, GREY, ORANGE, finish


def names_figure(names: FeatureNames) -> go.Figure:
    """Shares and AUC of names, beside the controls that go through the same choice and test."""
    table = names.summary()
    panels = {
        "features of those tested that have a name, %": ("named", 100),
        "AUC of the texts tested, median": ("auc", 1),
    }
    bars = [("", "its own proposals", BLUE)]
    bars += [
        (f"_{control}", text, colour)
        for (control, text), colour in zip(CONTROLS.items(), (GREY, ORANGE), strict=True)
    ]
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(panels), horizontal_spacing=0.1)
    for col, (measure, factor) in enumerate(panels.values(), start=1):
        for ending, label, colour in bars:
            figure.add_bar(
                x=[str(layer) for layer in table["layer"]],
                y=(factor * table[measure + ending]).tolist(),
                name=label,
                legendgroup=label,
                showlegend=col == 1,
                marker={"color": colour},
                hovertemplate=f"layer %{{x}}, {label}: %{{y:.3g}}<extra></extra>",
                row=1,
                col=col,
            )
    figure.update_xaxes(title_text="layer s", type="category", title_standoff=6)
    figure.update_yaxes(range=[0, 100], title_text="%", title_standoff=4, col=1)
    figure.update_yaxes(range=[0, 1], title_text="AUC (0.5: nothing foretold)", col=2)
    figure.add_hline(y=0.5, line={"color": GREY, "dash": "dot"}, row=1, col=2)
    figure.update_layout(
        title={
            "text": "Names of features, tested on held-out images<br><sup>"
            f"{names.data}: chosen on {names.n_chosen_on} images, tested on N = "
            f"{names.n_held_out}; L0 {names.l0:.1f}, seed {names.seed}<br>vocabulary: "
            f"{html.escape(names.vocabulary)}</sup>"
        },
        barmode="group",
        width=1000,
        height=460,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 140})
