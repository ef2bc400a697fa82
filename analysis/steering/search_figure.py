"""A steering search: what each feature found does, predicted and measured."""

from __future__ import annotations

import html

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.style import BLUE, INK, ORANGE, ZERO_LINE, error_bars, finish
from vit_clt.analysis.stats.names import feature_text
from vit_clt.analysis.steering.scaled_features import SCALES
from vit_clt.analysis.steering.search_result import SteeringSearch
from vit_clt.analysis.steering.wording import rows_name

_SCALE_STYLE = {
    SCALES[0]: ("suppressed (× 0)", BLUE, -0.2),
    SCALES[1]: ("doubled (× 2)", ORANGE, 0.2),
}


def search_figure(search: SteeringSearch) -> go.Figure:
    """Measured changes with intervals; predictions and random features beside them."""
    panels = [
        ("contrast", "logit minus the others' mean", 1),
        ("probability", "probability (points)", 100),
    ]
    if "loss" in search.measures:
        panels.append(("loss", "cross-entropy (nats)", 1))
    figure = make_subplots(
        rows=1,
        cols=len(panels),
        subplot_titles=[f"change of {title}" for _, title, _ in panels],
        horizontal_spacing=0.06,
        shared_yaxes=True,
    )
    frame = search.frame
    for column, (measure, _, factor) in enumerate(panels, start=1):
        first = column == 1
        for scale in SCALES:
            name, colour, shift = _SCALE_STYLE[scale]
            at_scale = frame[frame["scale"] == scale]
            found = at_scale[at_scale["role"] == "found"]
            random = at_scale[at_scale["role"] == "random"]
            value, low, high = (found[measure + end] * factor for end in ("", "_low", "_high"))
            figure.add_trace(
                go.Bar(
                    x=value.tolist(),
                    y=(found["candidate"] + shift).tolist(),
                    width=0.36,
                    orientation="h",
                    error_x=error_bars(value, low, high, thickness=1.2, width=3),
                    name=f"{name}, measured",
                    legendgroup=name,
                    showlegend=first,
                    marker={"color": colour, "opacity": 0.75},
                    customdata=[f"{s}:{i}" for s, i in search.candidates],
                    hovertemplate=f"%{{customdata}} {name}: %{{x:.4g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            figure.add_trace(
                go.Scatter(
                    x=(random[measure] * factor).tolist(),
                    y=(random["candidate"] + shift).tolist(),
                    mode="markers",
                    name="random features, measured",
                    legendgroup="random",
                    showlegend=first and scale == SCALES[0],
                    marker={"symbol": "x-thin", "size": 8, "line": {"color": INK, "width": 1.5}},
                    customdata=[
                        f"{s}:{i}" for s, i in zip(random["layer"], random["feature"], strict=True)
                    ],
                    hovertemplate=f"random %{{customdata}} {name}: %{{x:.4g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            if measure == "contrast":
                figure.add_trace(
                    go.Scatter(
                        x=found["predicted"].tolist(),
                        y=(found["candidate"] + shift).tolist(),
                        mode="markers",
                        name="predicted: direct effect on the other half",
                        legendgroup="predicted",
                        showlegend=scale == SCALES[0],
                        marker={
                            "symbol": "diamond-open",
                            "size": 9,
                            "color": INK,
                            "line": {"width": 1.5},
                        },
                        hovertemplate="predicted: %{x:.4g}<extra></extra>",
                    ),
                    row=1,
                    col=column,
                )
    n = len(search.candidates)
    figure.update_yaxes(
        tickvals=list(range(n)),
        ticktext=[html.escape(feature_text(s, i, search.names)) for s, i in search.candidates],
        range=[n - 0.4, -0.6],
        showgrid=False,
    )
    figure.update_yaxes(title={"text": "layer:feature", "font": {"size": 13}}, col=1)
    figure.update_xaxes(exponentformat="none", **ZERO_LINE)
    figure.update_annotations(font_size=14)
    title = f"Which features move “{search.target}”?"
    figure.update_layout(
        title={"text": f"{title}<br><sup>{_search_subtitle(search)}</sup>"},
        barmode="overlay",
        width=1000,
        height=270 + 48 * n,
        legend={"orientation": "h", "y": -70 / (60 + 48 * n), "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 150, "b": 90, "l": 80})


def _search_subtitle(search: SteeringSearch) -> str:
    before = search.baseline
    loss = ""
    if "loss" in before:
        loss = f", top-1 {100 * before['top1']:.1f} %, loss {before['loss']:.4f} nats"
    return (
        f"{search.data}, {rows_name(search.tokens)}, L0 = {search.l0:.1f} a row, readout: "
        f"{search.readout}; every MLP replaced with error nodes, stream inputs<br>ranked on "
        f"{search.n_ranked} images by |direct effect| (norms differentiated, attention held) among "
        f"{search.n_searched:,} features; measured on the other N = {search.n}<br>"
        f"bars: 95 % bootstrap over images, paired; random: same layer, about the same firing "
        f"rate, seed {search.seed}<br>"
        f"unsteered: probability {100 * before['probability']:.1f} %{loss}"
    )
