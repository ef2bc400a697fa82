"""Effects in the surrogates against effects in the ViT, set by set; below, how far they agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.causal.effect_agreement import Measure
from vit_clt.analysis.causal.figure import FILL_NAMES, SITE_NAMES
from vit_clt.analysis.causal.interventions import Intervention, layers_kind
from vit_clt.analysis.causal.surrogate_effects import FIRST_ORDER, VIT
from vit_clt.analysis.causal.targets import Path
from vit_clt.analysis.reporting.levels import LEVELS, Level, add_levels
from vit_clt.analysis.reporting.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    ROW_NAMES,
    SERIES,
    error_bars,
    finish,
    or_none,
)
from vit_clt.analysis.stats.names import LayerSet, layers_text

if TYPE_CHECKING:
    from vit_clt.analysis.causal.surrogate_result import SurrogateCausality

_KINDS = {"single": (BLUE, "circle"), "range": (ORANGE, "square"), "other": (GREEN, "diamond")}
_PERMUTED = Level("effects permuted over sets", GREY, "dash")
_COLUMNS = 6  # two panels of measures, or one for each of up to three models


def surrogate_figure(study: SurrogateCausality) -> go.Figure:
    """A panel a model with the mean effects of the first intervention; then Pearson and error."""
    intervention = study.interventions[0]
    models = [*study.surrogates, FIRST_ORDER]
    rows_of_models = [models[i : i + 3] for i in range(0, len(models), 3)]
    specs = [
        [cell for _ in row for cell in ({"colspan": 2}, None)] + [None] * (_COLUMNS - 2 * len(row))
        for row in rows_of_models
    ]
    halves = [{"colspan": 3}, None, None, {"colspan": 3}, None, None]
    figure = make_subplots(
        rows=len(specs) + 1,
        cols=_COLUMNS,
        specs=[*specs, halves],
        subplot_titles=[*models, "Pearson (loss, all sets)", "relative error (loss, all sets)"],
        horizontal_spacing=0.06,
        vertical_spacing=0.24 / len(specs),
    )
    for i, row in enumerate(rows_of_models):
        for j, model in enumerate(row):
            _scatter(figure, study, model, intervention, i + 1, 2 * j + 1, legend=i == j == 0)
    _measures(figure, study, models, len(specs) + 1)
    done = (
        f"{SITE_NAMES[intervention.site]} set to {FILL_NAMES[intervention.fill]}, "
        f"{ROW_NAMES[intervention.ablated]}"
    )
    figure.update_layout(
        title={
            "text": "Do interventions change the surrogate as they change the ViT?<br><sup>"
            f"{study.data}, N = {study.n}, every MLP replaced, stream inputs, L0 = "
            f"{study.l0[study.surrogates[0]]:.1f}; top: total effects of {done}<br>"
            "bars: 95 % bootstrap over images; readout: "
            f"{study.readout}; seed {study.seed}</sup>"
        },
        width=1000,
        height=260 + 300 * (len(specs) + 1),
        legend={"orientation": "h", "y": -0.12},
    )
    return finish(figure).update_layout(margin={"t": 130, "b": 90})


def _scatter(
    figure: go.Figure,
    study: SurrogateCausality,
    model: str,
    intervention: Intervention,
    row: int,
    col: int,
    legend: bool,
) -> None:
    effects = study.mean_effects[intervention, "total"]
    n_layers = 1 + max(layers[-1] for layers in effects[VIT])
    by_kind: dict[str, list[LayerSet]] = {}
    for layers in effects[VIT]:
        by_kind.setdefault(layers_kind(layers, n_layers), []).append(layers)
    for kind, sets in by_kind.items():
        x, y = ([effects[name][layers] for layers in sets] for name in (VIT, model))
        bars = {
            f"error_{axis}": error_bars(
                pd.Series(map(float, values)),
                pd.Series([v.low for v in values]),
                pd.Series([v.high for v in values]),
                width=0,
            )
            for axis, values in (("x", x), ("y", y))
        }
        colour, symbol = _KINDS[kind]
        figure.add_trace(
            go.Scatter(
                x=list(map(float, x)),
                y=list(map(float, y)),
                **bars,
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 6},
                name=f"{kind} sets of layers",
                legendgroup=kind,
                showlegend=legend,
                customdata=[layers_text(layers) for layers in sets],
                hovertemplate="layers %{customdata}: ViT %{x:.4g}, here %{y:.4g}<extra></extra>",
            ),
            row=row,
            col=col,
        )
    ends = [float(v) for v in effects[VIT].values()]
    ends = [min(ends), max(ends)]
    same = {LEVELS["identity"]: ends}
    add_levels(figure, ends, same, legend=legend, row=row, col=col)
    figure.update_xaxes(title_text="Δ loss in the ViT (nats)", row=row, col=col)
    figure.update_yaxes(title_text="Δ loss" if col == 1 else "", row=row, col=col)


def _measures(figure: go.Figure, study: SurrogateCausality, models: list[str], row: int) -> None:
    keys: list[tuple[Intervention, Path]] = list(study.mean_effects)
    many = len(study.interventions) > 1
    places = [f"{each}, {path}" if many else path for each, path in keys]
    columns: dict[int, Measure] = {1: "pearson", 4: "relative_error"}
    for column, measure in columns.items():
        for i, model in enumerate(models):
            found = [study.agreement(measure, model=model, intervention=e, path=p) for e, p in keys]
            values = [a.value for a in found]
            figure.add_trace(
                go.Bar(
                    x=places,
                    y=[or_none(v) for v in values],
                    error_y=error_bars(
                        pd.Series(map(float, values)),
                        pd.Series([v.low for v in values]),
                        pd.Series([v.high for v in values]),
                        width=2,
                    ),
                    name=model,
                    legendgroup=model,
                    showlegend=column == 1,
                    marker={"color": SERIES[i % len(SERIES)]},
                    hovertemplate=f"{model}, %{{x}}: %{{y:.4g}}<extra></extra>",
                ),
                row=row,
                col=column,
            )
        floors = [study.agreement(measure, intervention=e, path=p).floor for e, p in keys]
        ends = [f.low if measure == "relative_error" else f.high for f in floors]
        add_levels(figure, places, {_PERMUTED: ends}, legend=column == 1, row=row, col=column)
    figure.update_yaxes(rangemode="tozero", row=row)
