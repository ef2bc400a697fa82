"""Plotly figures, each legible on its own: titles, units, colour-blind-safe scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

if TYPE_CHECKING:
    from vit_clt.analysis.ablations import AblationCurves
    from vit_clt.analysis.cascade import Cascade
    from vit_clt.analysis.contributions import ContributionScores
    from vit_clt.analysis.reconstruction import Reconstruction

ROW_NAMES = {"cls": "CLS rows", "patch": "patch rows", "all": "all rows"}
# Okabe and Ito's palette: distinguishable with every common form of colour blindness
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#222222"}


def contribution_figure(grid: Sequence[Sequence[ContributionScores]]) -> go.Figure:
    """Heatmaps of C(s->l) on one shared scale: one row per token kind, one column per score.

    Targets run down, sources across; the last column is the share of the bias. Numbers in the
    cells and on hover; the grey triangle holds sources deeper than their target.
    """
    cells = [scores for row in grid for scores in row]
    n_columns = max(len(row) for row in grid)
    titles = [
        f"{ROW_NAMES[scores.tokens]} · {scores.kind}"
        + (f" ({scores.reduce.replace('_', ' ')})" if scores.kind in ("projection", "norm") else "")
        for scores in cells
    ]
    top = max(float(scores.matrix.nan_to_num().abs().max()) for scores in cells)
    figure = make_subplots(
        rows=len(grid),
        cols=n_columns,
        subplot_titles=titles,
        horizontal_spacing=0.09,
        vertical_spacing=0.42 / (len(grid) + 1),
    )
    n = len(cells[0].matrix)
    for i, row in enumerate(grid, start=1):
        for j, scores in enumerate(row, start=1):
            z = [
                [*(None if v != v else v for v in values), None if b != b else b]
                for values, b in zip(scores.matrix.tolist(), scores.bias.tolist(), strict=True)
            ]
            text = [["" if v is None else f"{v:.2f}" for v in values] for values in z]
            figure.add_trace(
                go.Heatmap(
                    z=z,
                    x=[*map(str, range(n)), "bias"],
                    y=list(map(str, range(n))),
                    text=text,
                    texttemplate="%{text}" if n <= 12 else None,
                    textfont={"size": 11 if n <= 8 else 9},
                    coloraxis="coloraxis",
                    hovertemplate="target %{y}, source %{x}: %{z:.4f}<extra></extra>",
                    hoverongaps=False,
                    xgap=1,
                    ygap=1,
                ),
                row=i,
                col=j,
            )
    figure.update_xaxes(title_text="source layer s", type="category", showgrid=False)
    figure.update_yaxes(
        title_text="target layer l", autorange="reversed", type="category", showgrid=False
    )
    first = cells[0]
    figure.update_layout(
        title={
            "text": f"C(s→l): from which depth can y_l be sparsely read?<br><sup>{first.data}, "
            f"N = {first.n_images}, teacher trajectory, L0 = {first.l0:.1f} a token</sup>",
        },
        coloraxis={
            "colorscale": "RdBu",
            "reversescale": True,
            "cmin": -top,
            "cmax": top,
            "cmid": 0,
            "colorbar": {"title": {"text": "share of ŷ"}, "thickness": 14},
        },
        width=140 + n_columns * max(360, 34 * (n + 1)),
        height=170 + len(grid) * max(340, 30 * n + 80),
        plot_bgcolor="#eeeeee",
    )
    return finish(figure)


def ablation_figure(curves: AblationCurves) -> go.Figure:
    """Accuracy and loss with the top k sources kept or dropped, beside baseline and floors."""
    frame = curves.to_frame()
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("zero-shot accuracy (%)", "cross-entropy (nats)"),
        horizontal_spacing=0.12,
    )
    for column, (value, low, high, factor) in enumerate(
        (("top1", "top1_low", "top1_high", 100), ("loss", "loss_low", "loss_high", 1)), start=1
    ):
        for mode, colour, dash, symbol in (
            ("keep", BLUE, "solid", "circle"),
            ("drop", ORANGE, "dash", "square"),
        ):
            rows = frame[frame["mode"] == mode]
            figure.add_trace(
                go.Scatter(
                    x=rows["k"].tolist(),
                    y=(rows[value] * factor).tolist(),
                    error_y={
                        "array": ((rows[high] - rows[value]) * factor).tolist(),
                        "arrayminus": ((rows[value] - rows[low]) * factor).tolist(),
                        "thickness": 1,
                    },
                    customdata=rows["sources"].tolist(),
                    hovertemplate=mode + " {%{customdata}}: %{y:.3f}<extra></extra>",
                    name=f"{mode} top k",
                    legendgroup=mode,
                    showlegend=column == 1,
                    mode="lines+markers",
                    line={"color": colour, "dash": dash},
                    marker={"symbol": symbol, "size": 8},
                ),
                row=1,
                col=column,
            )
        for name, label, colour, dash in (
            ("original", "unaltered model", "#222222", "solid"),
            ("full", "full reconstruction", GREEN, "dot"),
            ("floor_mean", "floor: MLP rows at their mean", PURPLE, "dashdot"),
            ("floor_zero", "floor: MLP rows at zero", GREY, "longdash"),
        ):
            reading = curves.readings[name]
            level = (reading.top1 if value == "top1" else reading.loss) * factor
            figure.add_trace(
                go.Scatter(
                    x=[0, len(curves.ranking)],
                    y=[level, level],
                    mode="lines",
                    name=label,
                    legendgroup=name,
                    showlegend=column == 1,
                    line={"color": colour, "dash": dash, "width": 1.5},
                    hovertemplate=label + ": %{y:.3f}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    no_op = " — these rows cannot reach the output: a no-op" if curves.no_op else ""
    figure.update_xaxes(title_text="k source layers", dtick=1)
    figure.update_layout(
        title={
            "text": f"Keep or drop the top k sources of layer {curves.target}, "
            f"{ROW_NAMES[curves.tokens]}{no_op}<br><sup>{curves.data}, N = {curves.readings.n}, "
            f"teacher trajectory, L0 = {curves.l0:.1f}, dropped terms: {curves.fill}, seed "
            f"{curves.seed}; bars: 95 % bootstrap over images<br>ranked by {curves.ranked_by}: "
            f"{' '.join(map(str, curves.ranking))}</sup>",
        },
        width=1000,
        height=490,
        legend={"orientation": "h", "y": -0.2},
    )
    return finish(figure)


def cascade_figure(result: Cascade, templates: str) -> go.Figure:
    """Accuracy and loss against the first layer replaced, a row of panels per token kind."""
    frame = result.to_frame()
    n_rows = len(result.tokens)
    titles = ("zero-shot accuracy (%)", "cross-entropy (nats, log)")
    figure = make_subplots(
        rows=n_rows,
        cols=2,
        subplot_titles=[f"{ROW_NAMES[kind]} · {t}" for kind in result.tokens for t in titles],
        horizontal_spacing=0.1,
        vertical_spacing=0.28 / (n_rows + 1),
    )
    lines = (
        ("baseline", "unaltered model", "#222222", "solid"),
        ("floor_mean", "floor: MLP rows at mean", PURPLE, "dashdot"),
        ("floor_zero", "floor: at zero", GREY, "dot"),
    )
    styles = {"stream": (BLUE, "solid", "circle"), "teacher": (ORANGE, "dash", "square")}
    for i, kind in enumerate(result.tokens, start=1):
        of_kind = frame[frame["tokens"] == kind]
        for column, (prefix, measure, factor) in enumerate(
            (("", "top1", 100), ("loss_", "loss", 1)), start=1
        ):
            first = {"showlegend": i == column == 1}
            floors = of_kind[of_kind["inputs"] == result.inputs[0]]
            for name, label, colour, dash in lines:
                figure.add_trace(
                    go.Scatter(
                        x=floors["first_layer"].tolist(),
                        y=(floors[prefix + name] * factor).tolist(),
                        mode="lines+markers" if len(floors) == 1 else "lines",
                        name=label,
                        legendgroup=name,
                        line={"color": colour, "dash": dash, "width": 1.5},
                        hovertemplate=label + ", from %{x}: %{y:.3f}<extra></extra>",
                        **first,
                    ),
                    row=i,
                    col=column,
                )
            for inputs in result.inputs:
                rows = of_kind[of_kind["inputs"] == inputs]
                colour, dash, symbol = styles[inputs]
                y, low, high = (rows[measure + end] * factor for end in ("", "_low", "_high"))
                figure.add_trace(
                    go.Scatter(
                        x=rows["first_layer"].tolist(),
                        y=y.tolist(),
                        error_y={
                            "array": (high - y).tolist(),
                            "arrayminus": (y - low).tolist(),
                            "thickness": 1,
                        },
                        mode="lines+markers",
                        name=f"CLT, {inputs} inputs",
                        legendgroup=inputs,
                        line={"color": colour, "dash": dash},
                        marker={"symbol": symbol, "size": 7},
                        hovertemplate=inputs + ", from %{x}: %{y:.3f}<extra></extra>",
                        **first,
                    ),
                    row=i,
                    col=column,
                )
    last = result.n_layers - 1
    ticks = [float(f"{digit}e{power}") for power in range(-4, 2) for digit in (1, 2, 5)]
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text=f"first layer s replaced (s to {last})", row=n_rows)
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks], col=2)
    figure.update_layout(
        title={
            "text": f"The CLT in place of layers s to {last}<br><sup>{result.data}, "
            f"N = {result.readings.n}, templates: {templates}, L0 = {frame['l0'].mean():.1f} a "
            "token and layer; bars: 95 % bootstrap over images</sup>",
        },
        width=1000,
        height=200 + 300 * n_rows,
        legend={"orientation": "h", "y": -60 / (300 * n_rows), "yanchor": "top"},
    )
    return finish(figure)


def reconstruction_figure(result: Reconstruction) -> go.Figure:
    """R^2, cosine and MSE per layer, CLS and patch rows."""
    panels = (("r2", "R² (per layer)"), ("cosine", "cosine"), ("mse", "MSE (log, raw units)"))
    figure = make_subplots(
        rows=1, cols=3, subplot_titles=[title for _, title in panels], horizontal_spacing=0.08
    )
    for column, (name, _) in enumerate(panels, start=1):
        for tokens, colour, symbol in (("cls", ORANGE, "square"), ("patch", BLUE, "circle")):
            rows = result.frame[result.frame["tokens"] == tokens]
            figure.add_trace(
                go.Scatter(
                    x=rows["layer"].tolist(),
                    y=rows[name].tolist(),
                    name=ROW_NAMES[tokens],
                    legendgroup=tokens,
                    showlegend=column == 1,
                    mode="lines+markers",
                    line={"color": colour},
                    marker={"symbol": symbol, "size": 8},
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="layer", dtick=1)
    figure.update_yaxes(type="log", col=3)
    n = int(result.frame["n_images"].iloc[0])
    l0 = float(result.frame.loc[result.frame["tokens"] == "all", "l0"].mean())
    figure.update_layout(
        title={
            "text": f"Reconstruction per layer<br><sup>{result.data}, N = {n}, teacher "
            f"trajectory, L0 = {l0:.1f} a token; R² = 0 is predicting the mean</sup>"
        },
        width=1000,
        height=400,
        legend={"orientation": "h", "y": -0.25},
    )
    return finish(figure)


def finish(figure: go.Figure) -> go.Figure:
    """The font, template and margins that all figures share."""
    figure.update_layout(
        font=_FONT,
        template="plotly_white",
        margin={"l": 60, "r": 30, "t": 110, "b": 60},
        title={"x": 0.02, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 22}},
    )
    return figure
