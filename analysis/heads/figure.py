"""Attention heads beside MLPs: direct terms by head and layer, and against ablations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.causal.head_figure import add_head_map
from vit_clt.analysis.heads.agreement import PREDICTED, predictions
from vit_clt.analysis.reporting.levels import LEVELS, add_levels
from vit_clt.analysis.reporting.style import BLUE, ORANGE, ZERO_LINE, error_bars, finish

if TYPE_CHECKING:
    from vit_clt.analysis.heads.result import HeadStudy

_DRAWN = "direct_term_less_fill"
"""The prediction that the figure draws against the ablation with everything recomputed."""
_ROW = 26


def heads_figure(study: HeadStudy) -> go.Figure:
    """Direct terms, terms by layer; below, the ablations, and both against each other."""
    terms, ablated = study.terms, study.ablations
    figure = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=[
            "mean direct term of each head",
            "mean direct terms by layer",
            "Δ logit where the head is ablated",
            f"ablation against: {PREDICTED[_DRAWN]}",
        ],
        horizontal_spacing=0.17,
        vertical_spacing=0.15,
    )
    shape = terms.heads.shape[1:]
    add_head_map(figure, terms.heads.mean(0), "direct term", row=1, col=1, bar=(0, 0))
    total = ablated.logit_changes("total").mean(0)
    add_head_map(figure, total.reshape(shape), "Δ logit, total", row=2, col=1, bar=(0, 1))
    _layers(figure, study)
    _scatter(figure, study)
    height = 270 + 2 * max(260, _ROW * shape[0])
    figure.update_layout(
        title={
            "text": "Attention heads beside MLPs: what each adds to the label's logit"
            f"<br><sup>{ablated.data}, N = {len(terms.logit)}, readout: {ablated.readout}, CLT "
            f"{study.subject.short_name}, L0 {study.l0:.1f}"
            "<br>logit: the label's less the mean of all classes, mean "
            f"{terms.logit.mean():.2f}; direct terms with attention and norms held, "
            f"{terms.stream.mean():+.2f} of it from what enters the stream, "
            f"{terms.reader.mean():+.2f} from ln_post's bias"
            f"<br>ablation: all rows, fill {ablated.fill}, everything recomputed, seed "
            f"{ablated.seed}; bars 95 % bootstrap over images</sup>"
        },
        width=1040,
        height=height,
        barmode="group",
        legend={"orientation": "h", "y": -0.09, "x": 0},
    )
    return finish(figure).update_layout(margin={"t": 160})


def _layers(figure: go.Figure, study: HeadStudy) -> None:
    frame = study.by_layer()
    for part, name, colour in (("mlp", "MLP", ORANGE), ("attention", "attention", BLUE)):
        value, low, high = (frame[f"{part}{end}"] for end in ("", "_low", "_high"))
        figure.add_trace(
            go.Bar(
                x=value.tolist(),
                y=frame["layer"].tolist(),
                orientation="h",
                error_x=error_bars(value, low, high, width=2),
                marker={"color": colour, "pattern": {"shape": "/" * (part == "mlp")}},
                name=f"{name} of the layer",
                hovertemplate=f"{name}, layer %{{y}}: %{{x:.4g}}<extra></extra>",
            ),
            row=1,
            col=2,
        )
    figure.update_yaxes(title_text="layer", dtick=1, showgrid=False, row=1, col=2)
    figure.update_xaxes(title_text="logits", title_standoff=5, **ZERO_LINE, row=1, col=2)


def _scatter(figure: go.Figure, study: HeadStudy) -> None:
    predicted = predictions(study.terms)[_DRAWN].mean(0)
    measured = study.ablations.logit_changes("total").mean(0)
    random = study.ablations.logit_changes("random").mean(0)
    names = [f"{l}.{h}" for l, h in study.ablations.heads]
    ends = [float(predicted.min()), float(predicted.max())]
    add_levels(figure, ends, {LEVELS["identity"]: ends}, row=2, col=2, legend=True)
    for values, name, colour, symbol in (
        (random, "the same change turned at random", "#777777", "x"),
        (measured, "head ablated", BLUE, "circle"),
    ):
        figure.add_trace(
            go.Scatter(
                x=predicted.tolist(),
                y=values.tolist(),
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.8},
                text=names,
                name=name,
                hovertemplate="head %{text}<br>predicted %{x:.4g}, measured %{y:.4g}"
                "<extra></extra>",
            ),
            row=2,
            col=2,
        )
    figure.update_xaxes(title_text="predicted Δ logit", title_standoff=5, row=2, col=2)
    figure.update_yaxes(title_text="measured Δ logit", row=2, col=2)
