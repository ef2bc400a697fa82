"""Heatmaps of contribution scores, and of the differences between two CLTs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from plotly.subplots import make_subplots
from torch import Tensor

from vit_clt.analysis.reporting.style import (
    FAINT,
    MOST_LAYERS_WITH_NUMBERS,
    PLATE,
    ROW_NAMES,
    cell_text,
    finish,
)

if TYPE_CHECKING:
    from vit_clt.analysis.contributions.difference import ScoreDifference
    from vit_clt.analysis.contributions.source_scores import SourceScores

# characters beside the kind in the title of a panel; more go on a line of their own
_LONGEST_NOTE = 20


def contribution_figure(
    grid: Sequence[Sequence[SourceScores]], columns: Sequence[str] | None = None
) -> go.Figure:
    """Heatmaps of C(s->l) or E(s->l) on one shared scale, as many rows and columns as `grid` has.

    Targets run down, sources across; the last columns are the shares of a skip connection, where
    there is one, and of the bias. Numbers stand in
    the cells of up to 12 layers, where they do not round to 0, and on hover with their 95 %
    intervals. The grey triangle holds sources deeper than their target. Effects on the output, in
    nats, are one more row on a scale of its own.

    Args:
        grid: a row per token kind (and score kind), a column per score kind or per CLT.
        columns: names of the CLTs, where the columns are CLTs.
    """
    first = grid[0][0]
    titles = [
        f"{columns[j]} (L0 {scores.l0:.1f})<br>{_panel(scores)}" if columns else _panel(scores)
        for row in grid
        for j, scores in enumerate(row)
    ]
    figure = _panels(len(grid), titles)
    for i, row in enumerate(grid, start=1):
        for j, scores in enumerate(row, start=1):
            _draw(figure, i, j, scores.columns, scores.values, scores.low, scores.high)
            if scores.output_row is not None:
                _draw_output(figure, i, j, scores)
    l0 = "" if columns else f", L0 = {first.l0:.1f} a token"
    title, trajectory, unit = _wording({scores.kind == "effect" for row in grid for scores in row})
    return _finished(
        figure,
        (len(grid), len(grid[0]), len(first.matrix)),
        title,
        f"{first.data}, N = {first.n_images}, {trajectory}{l0}<br>{_intervals(first)}",
        unit,
        "RdBu",
    )


def difference_figure(
    grid: Sequence[Sequence[ScoreDifference]], pairs: Sequence[tuple[str, str]]
) -> go.Figure:
    """Heatmaps of C_a - C_b on one shared scale; cells whose paired interval holds 0 are grey.

    Args:
        grid: a row per token kind (and score kind), a column per pair of CLTs.
        pairs: names of a and b of each column.
    """
    first = grid[0][0].a
    titles = [
        f"{a} − {b} (L0 {difference.a.l0:.1f}, {difference.b.l0:.1f})<br>{_panel(difference.a)}"
        for row in grid
        for difference, (a, b) in zip(row, pairs, strict=True)
    ]
    figure = _panels(len(grid), titles)
    for i, row in enumerate(grid, start=1):
        for j, each in enumerate(row, start=1):
            values = each.matrix
            if each.a.kind == "centred":  # its bias is 0 by definition, in both
                values[:, -1] = torch.nan
            _draw(figure, i, j, each.columns, values, each.low, each.high, each.clear)
    return _finished(
        figure,
        (len(grid), len(grid[0]), len(first.matrix)),
        f"C(s→l) of {pairs[0][0]} less that of another CLT",
        f"{first.data}, N = {first.n_images}, teacher trajectory<br>"
        f"dark grey: paired interval holds 0; {_intervals(first)}",
        "difference",
        "PuOr",
    )


def _wording(are_effects: set[bool]) -> tuple[str, str, str]:
    """Title, trajectory and unit of contribution scores, of effects, or of both side by side."""
    if are_effects == {False}:
        return (
            "C(s→l): from which depth can y_l be sparsely read?",
            "teacher trajectory",
            "share of ŷ",
        )
    if are_effects == {True}:
        return (
            "E(s→l): what does silencing the features of s change?",
            "MLPs replaced, error nodes held",
            "share of Var(y)",
        )
    return (
        "C(s→l): from where can y_l be read? E(s→l): what does silencing s change?",
        "teacher trajectory; E: MLPs replaced, error nodes held",
        "share of ŷ;<br>E: of Var(y)",
    )


def _panel(scores: SourceScores) -> str:
    how = f" ({scores.how})" if scores.how else ""
    if len(how) > _LONGEST_NOTE:
        how = f"<br>{how[1:]}"
    return f"{ROW_NAMES[scores.tokens]} · {scores.kind}{how}"


def _intervals(scores: SourceScores) -> str:
    if scores.n_images < 2:
        return "one image has no interval"
    return f"on hover: 95 % bootstrap over images (seed {scores.seed})"


def _panels(n_rows: int, titles: Sequence[str]) -> go.Figure:
    n_columns = len(titles) // n_rows
    return make_subplots(
        rows=n_rows,
        cols=n_columns,
        subplot_titles=titles,
        horizontal_spacing=0.2 / (n_columns + 0.4),
        vertical_spacing=0.36 / (n_rows + 1),
    )


def _draw(
    figure: go.Figure,
    row: int,
    col: int,
    columns: Sequence[str],
    values: Float[Tensor, "target column"],
    low: Float[Tensor, "target column"],
    high: Float[Tensor, "target column"],
    clear: Bool[Tensor, "target column"] | None = None,
) -> None:
    """One panel; cells that are not `clear` go into a heatmap of their own, all grey."""
    n = len(values)
    coloured = values.isfinite() if clear is None else clear
    parts: list[tuple[Tensor, dict[str, Any]]] = [(coloured, {"coloraxis": "coloraxis"})]
    if clear is not None:
        grey = [[0, FAINT], [1, FAINT]]
        parts.append((values.isfinite() & ~clear, {"colorscale": grey, "showscale": False}))
    cells = torch.stack([values, low, high], -1).tolist()
    hover = [
        [f"{v:.4f}" + (f" ({a:.4f} to {b:.4f})" if a == a else "") for v, a, b in line]
        for line in cells
    ]
    for mask, colours in parts:
        shown = mask.tolist()
        z = [
            [v if on else None for (v, _, _), on in zip(line, ons, strict=True)]
            for line, ons in zip(cells, shown, strict=True)
        ]
        figure.add_trace(
            go.Heatmap(
                z=z,
                x=columns,
                y=list(map(str, range(n))),
                text=[[cell_text(v) for v in line] for line in z],
                texttemplate="%{text}" if n <= MOST_LAYERS_WITH_NUMBERS else None,
                textfont={"size": 11 if n <= 8 else 10},
                customdata=hover,
                hovertemplate="target %{y}, source %{x}: %{customdata}<extra></extra>",
                hoverongaps=False,
                xgap=1,
                ygap=1,
                **colours,
            ),
            row=row,
            col=col,
        )


def _draw_output(figure: go.Figure, row: int, col: int, scores: SourceScores) -> None:
    output = scores.output_row
    assert output is not None
    n, width = len(scores.values), len(output)

    def below(values: list[Any], empty: str | None = "") -> list[list[Any]]:
        # plotly misplaces a heatmap of one row on an axis that has others
        return [*([empty] * width for _ in range(n)), values]

    figure.add_trace(
        go.Heatmap(
            z=below([float(each) for each in output], None),
            x=scores.columns,
            y=[*map(str, range(n)), "output"],
            text=below([cell_text(float(each)) for each in output]),
            texttemplate="%{text}" if n <= MOST_LAYERS_WITH_NUMBERS else None,
            customdata=below([each.text(".4f") for each in output]),
            hovertemplate="output, source %{x}: loss %{customdata} nats<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            coloraxis="coloraxis2",
        ),
        row=row,
        col=col,
    )


def _largest(traces: Iterable[Any]) -> float:
    return max(abs(v) for trace in traces for line in trace.z for v in line if v is not None)


def _finished(
    figure: go.Figure,
    size: tuple[int, int, int],
    title: str,
    context: str,
    unit: str,
    colours: str,
) -> go.Figure:
    n_rows, n_columns, n = size
    top = _largest(trace for trace in figure.data if trace.coloraxis != "coloraxis2")
    in_nats = [trace for trace in figure.data if trace.coloraxis == "coloraxis2"]
    figure.update_xaxes(title_text="source layer s", type="category", showgrid=False)
    figure.update_yaxes(
        title_text="target layer l", autorange="reversed", type="category", showgrid=False
    )
    figure.update_layout(
        title={"text": f"{title}<br><sup>{context}</sup>"},
        coloraxis={
            "colorscale": colours,
            "reversescale": True,
            "cmin": -top,
            "cmax": top,
            "cmid": 0,
            "colorbar": {"title": {"text": unit}, "thickness": 14},
        },
        width=140 + n_columns * max(360, 34 * (n + 1)),
        height=195 + n_rows * max(340, 30 * n + 80),
        plot_bgcolor=PLATE,
    )
    if in_nats:
        top = _largest(in_nats)
        figure.update_layout(
            width=figure.layout.width + 150,
            coloraxis2={
                "colorscale": "PiYG",
                "reversescale": True,
                "cmin": -top,
                "cmax": top,
                "colorbar": {
                    "title": {"text": "rise of loss at<br>output (nats)"},
                    "thickness": 14,
                    "x": 1 + 0.3 / n_columns,
                },
            },
        )
    # two lines of context above panel titles of two lines
    return finish(figure).update_layout(margin_t=135)
