"""Predicted against measured effects of silencing features, a dot an intervention."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.graphs.agreement import MEASURED, PAIRS, PREDICTED
from vit_clt.analysis.graphs.result import GraphStudy
from vit_clt.analysis.reporting.levels import LEVELS, add_levels
from vit_clt.analysis.reporting.style import BLUE, ORANGE, finish

_COLOURS = {"top": BLUE, "random": ORANGE}


def agreement_figure(study: GraphStudy) -> go.Figure:
    """A panel per prediction and measurement; on the dashed line both are the same."""
    agreement = study.agreement
    frame = agreement.to_frame().query("chosen == 'all'")
    titles = []
    for r in frame.to_dict("records"):
        numbers = f"r = {r['pearson']:.2f} [{r['pearson_low']:.2f}, {r['pearson_high']:.2f}]"
        pair = f"{PREDICTED[r['predicted']]}<br>against: {MEASURED[r['measured']]}"
        titles.append(f"{pair}<br>{numbers}, slope {r['slope']:.2f}")
    figure = make_subplots(
        rows=2, cols=3, subplot_titles=titles, horizontal_spacing=0.08, vertical_spacing=0.2
    )
    dots = agreement.interventions
    for i, (predicted, measured) in enumerate(PAIRS):
        row, column = i // 3 + 1, i % 3 + 1
        ends = [
            float(dots[[predicted, measured]].min().min()),
            float(dots[[predicted, measured]].max().max()),
        ]
        add_levels(figure, ends, {LEVELS["identity"]: ends}, row=row, col=column)
        for chosen, colour in _COLOURS.items():
            part = dots[dots["chosen"] == chosen]
            figure.add_scatter(
                x=part[predicted].tolist(),
                y=part[measured].tolist(),
                mode="markers",
                marker={"color": colour, "size": 6, "opacity": 0.7},
                name="largest |direct effects|" if chosen == "top" else "other active ones, drawn",
                legendgroup=chosen,
                showlegend=i == 0,
                text=[
                    f"feature {r['layer']}:{r['feature']}, token row {r['token']}"
                    for r in part.to_dict("records")
                ],
                hovertemplate="%{text}<br>predicted %{x:.4g}, measured %{y:.4g}<extra></extra>",
                row=row,
                col=column,
            )
    figure.update_xaxes(title_text="predicted (logits)", title_standoff=6, row=2)
    figure.update_yaxes(title_text="measured (logits)", title_standoff=6, col=1)
    figure.update_annotations(font_size=12)
    figure.update_layout(
        title={
            "text": "Silencing one feature: the effect predicted and the effect measured<br><sup>"
            f"{study.data}, CLT {study.subject.short_name}, L0 {study.l0:.1f}; N = {len(dots)} "
            f"interventions, seed {agreement.seed}"
            f"<br>permuted predictions stay below r = {frame['pearson_floor_high'].max():.2f} in "
            "97.5 % of cases; on the dashed line both are the same</sup>"
        },
        width=1000,
        height=820,
        legend={"orientation": "h", "y": -0.1, "x": 0},
    )
    return finish(figure).update_layout(margin={"t": 165, "b": 90})
