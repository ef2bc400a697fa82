"""Every layer's features in a few numbers: purity, and whether they raise their class."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.analysis.features.summary import PURE
from vit_clt.analysis.reporting.style import BLUE, GREY, finish


def summary_figure(stats: FeatureStatistics) -> go.Figure:
    """Mean purity, and the share of pure features that raise most the class they fire on.

    Beside both stands what chance would give.
    """
    table = stats.summary()
    panels = {
        "purity": "mean purity of top images",
        "raise_own": "pure features that raise their own class",
    }
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(panels.values()))
    layers = [str(layer) for layer in table["layer"]]
    for col, name in enumerate(panels, start=1):
        for end, label, colour in (("", "measured", BLUE), ("_by_chance", "by chance", GREY)):
            figure.add_bar(
                x=layers,
                y=(100 * table[name + end]).tolist(),
                name=label,
                legendgroup=label,
                showlegend=col == 1,
                marker={"color": colour},
                hovertemplate=f"layer %{{x}}, {label}: %{{y:.1f}} %<extra></extra>",
                row=1,
                col=col,
            )
    figure.update_xaxes(title_text="layer s", type="category", title_standoff=6)
    figure.update_yaxes(range=[0, 100], title_text="%", title_standoff=4)
    figure.update_layout(
        title={
            "text": f"Features on {stats.data.name}<br><sup>{stats.caption()}<br>purity: share of "
            f"the {stats.n_top} top images with their most common class; pure: {PURE:.0%} or "
            "more</sup>"
        },
        barmode="group",
        width=1000,
        height=460,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 140})
