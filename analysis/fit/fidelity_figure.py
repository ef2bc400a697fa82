"""Fidelity against sparsity as a figure, and as a page with every number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, add_levels, add_points
from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.reporting.style import ROW_NAMES, SERIES, finish

if TYPE_CHECKING:
    from vit_clt.analysis.fit.fidelity_study import Fidelity

# colours tell groups apart, dashes and symbols the two kinds
_KINDS = {True: ("CLT", "solid", "circle"), False: ("per-layer", "dash", "square")}
# column, title, factor, whether it has an interval
_PANELS = (
    ("r2_cls", "R², CLS rows", 1, False),
    ("r2_position_patch", "R², patch rows", 1, False),
    ("loss", "cross-entropy (nats, log)", 1, True),
    ("recovered_loss", "loss recovered (%)", 100, True),
    ("recovered_top1", "accuracy recovered (%)", 100, True),
    ("top1", "accuracy (%)", 100, True),
)
_COLUMNS = 3
CAVEAT = (
    "At equal k the kinds are not equals: a CLT rebuilds y_l from the active codes of l + 1 "
    "layers and has a decoder for each, a per-layer transcoder from those of one. Codes read and "
    "parameters stand beside every result; L0 alone does not say which kind is better."
)


def fidelity_figure(result: Fidelity) -> go.Figure:
    """R^2, loss and accuracy, whole and recovered, against measured L0 (log).

    A CLT's lines are solid, a per-layer transcoder's dashed; floors and the unaltered model are
    horizontal lines.
    """
    n_rows = -(-len(_PANELS) // _COLUMNS)
    figure = make_subplots(
        rows=n_rows,
        cols=_COLUMNS,
        subplot_titles=[title for _, title, _, _ in _PANELS],
        horizontal_spacing=0.08,
        vertical_spacing=0.17,
    )
    groups = _groups(result.frame)
    # room at both sides, so that measured L0s that hardly differ are not drawn far apart
    span = [result.frame["l0"].min() / 1.2, result.frame["l0"].max() * 1.2]
    for i, (column, _, factor, bars) in enumerate(_PANELS):
        place: dict[str, Any] = {"row": i // _COLUMNS + 1, "col": i % _COLUMNS + 1}
        levels = {LEVELS[kind]: level * factor for kind, level in _levels(result, column).items()}
        # the panel of losses has all lines
        add_levels(figure, span, levels, legend=column == "loss", **place)
        for j, (label, rows) in enumerate(groups.items()):
            _, dash, symbol = _KINDS[bool(rows["cross_layer"].iloc[0])]
            add_points(
                figure,
                rows["l0"].tolist(),
                tuple(rows[column + end] * factor for end in ("", "_low", "_high")[: 1 + 2 * bars]),
                name=label,
                colour=SERIES[j % len(SERIES)],
                dash=dash,
                symbol=symbol,
                hover="%{customdata[0]}: %{y:.4g}, L0 %{x:.1f}<br>%{customdata[1]:.0f} "
                "codes read a target, %{customdata[2]:,} parameters",
                legend=i == 0,
                customdata=rows[["name", "codes_read", "parameters"]].to_numpy().tolist(),
                **place,
            )
        if result.frame[column].isna().all():
            figure.add_annotation(
                text="undefined: these outputs<br>do not vary"
                if column.startswith("r2")
                else "undefined: the interval of<br>unaltered − floor contains 0",
                x=0.5,
                y=0.5,
                xref="x domain",
                yref="y domain",
                showarrow=False,
                **place,
            )
    ticks = _apart(result.frame["l0"].tolist())
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:.3g}" for t in ticks])
    ticks = [float(f"{m}e{e}") for e in range(-4, 2) for m in (1, 1.5, 2, 3, 5, 7)]
    figure.update_yaxes(
        type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks], row=1, col=_COLUMNS
    )
    figure.update_xaxes(title_text="measured L0 (log)", row=n_rows)
    trained = "" if result.trained_on is None else f"; trained on {result.trained_on}"
    rows = ROW_NAMES[result.tokens]
    figure.update_layout(
        title={
            "text": f"Fidelity against sparsity: all MLPs replaced, {rows}<br><sup>{result.data}, "
            f"N = {result.n}; {_shapes(result.frame)}{trained}<br>R² (0: position means) and L0 "
            f"({rows}) on the teacher trajectory, the rest with stream inputs; readout: "
            f"{result.readout}, seed {result.seed}; bars: 95 % bootstrap over images<br>"
            "At equal L0 a CLT rebuilds each layer from the codes of all layers up to it, a "
            "per-layer transcoder from those of one.</sup>",
        },
        width=1080,
        height=230 + 280 * n_rows,
        legend={"orientation": "h", "y": -0.13},
    )
    finish(figure)
    return figure.update_layout(margin_t=140)


def fidelity_report(result: Fidelity) -> str:
    """The page as self-contained HTML: the figure, then every number."""
    lead = (
        "How well does a transcoder stand in for all MLPs of the model, at which sparsity, and "
        "what does it gain from writing to deeper layers?"
    )
    facts = {
        "Replaced": f"{ROW_NAMES[result.tokens]} of every layer, stream inputs",
        "Images": f"{result.data}, N = {result.n}",
        **({} if result.trained_on is None else {"Trained on": result.trained_on}),
        "Readout": result.readout,
        "Seed of the bootstrap": str(result.seed),
        "Unaltered model": f"{100 * result.original.top1:.2f} % / {result.original.loss:.4f} nats",
        "Floor: rows at their mean": f"{100 * result.floor_mean.top1:.2f} % / "
        f"{result.floor_mean.loss:.4f} nats",
        "Floor: rows at zero": f"{100 * result.floor_zero.top1:.2f} % / "
        f"{result.floor_zero.loss:.4f} nats",
    }
    notes = [
        "Recovered is (value − floor) / (unaltered − floor), the floor being those MLP rows at "
        "their mean; it is undefined where the paired 95 % interval of unaltered − floor contains "
        "0. R² is a mean over layers; 0 is predicting the mean of all rows, in brackets (and in "
        "the figure) of the rows at the same position.",
    ]
    sections = [
        Section("What was measured", [CAVEAT], facts=facts),
        Section("Against measured L0", figures=[fidelity_figure(result)]),
        Section("Every transcoder", notes, [result.shown()]),
    ]
    return render_report("Fidelity against sparsity", lead, sections)


def _groups(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Transcoders that one line joins, by its label: same kind, sparsifier and width."""
    several = [name for name in ("sparsifier", "n_features") if frame[name].nunique() > 1]
    found = {}
    by = ["cross_layer", "skip", "sparsifier", "n_features"]
    for (cross_layer, skip, sparsifier, n_features), rows in frame.groupby(by, sort=False):
        parts = {"sparsifier": str(sparsifier), "n_features": f"F = {n_features:,}"}
        kind = _KINDS[bool(cross_layer)][0] + (" with skip" if skip else "")
        label = ", ".join([kind, *(parts[name] for name in several)])
        found[label] = rows.sort_values("l0")
    return found


def _apart(values: list[float]) -> list[float]:
    """The values, without those too close to the one before for two labels on a log axis."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value > found[-1] * 1.15:
            found.append(value)
    return found


def _shapes(frame: pd.DataFrame) -> str:
    sparsifiers = ", ".join(map(str, frame["sparsifier"].unique()))
    return f"{sparsifiers}, F = {', '.join(f'{f:,}' for f in frame['n_features'].unique())}"


def _levels(result: Fidelity, column: str) -> dict[str, float]:
    """Heights of the horizontal lines of a panel, by kind of level."""
    if column in ("top1", "loss"):
        readings = {
            "original": result.original,
            "floor_mean": result.floor_mean,
            "floor_zero": result.floor_zero,
        }
        return {kind: float(getattr(reading, column)) for kind, reading in readings.items()}
    # shares, of variance or of what is lost: the mean is 0 by definition, what zero is depends
    return {"original": 1.0, "floor_mean": 0.0}
