"""Where a model works something out: probes by depth above, what ablations cost below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.causal.figure import FILL_NAMES, SITE_NAMES
from vit_clt.analysis.probing.figure import PLACES, add_stream
from vit_clt.analysis.probing.places import PROBED_ROWS
from vit_clt.analysis.reporting.levels import LEVELS, add_levels, add_points
from vit_clt.analysis.reporting.style import AMBER, BLUE, GREEN, ORANGE, ROW_NAMES, finish
from vit_clt.analysis.stats.names import layers_text

if TYPE_CHECKING:
    from vit_clt.analysis.causal.effects import CausalEffects
    from vit_clt.analysis.factors.truth import Truth


def truth_figure(truth: Truth) -> go.Figure:
    """One figure: accuracy of probes by depth, then a row of panels per study of ablations.

    Each of those shows total effects on the output, accuracy (points) and loss (nats): of every
    layer alone, of layers s..L-1 and 0..s and, where they were read (`layer_sets(n, pairs=True)`),
    of s and s + 1 together. Layers stand in for one another, so one that costs nothing alone may
    still be missed in a range.
    """
    probed, ablated, names = truth.probed, truth.ablated, truth.names
    titles = [f"{PLACES[kind]}: probes of the stream · accuracy (%)" for kind in PROBED_ROWS]
    for effects in ablated:
        what = f"{SITE_NAMES[effects.site]}, {ROW_NAMES[effects.ablated]}"
        titles += [f"{what} · Δ accuracy (points)", f"{what} · Δ loss (nats)"]
    n_rows = 1 + len(ablated)
    figure = make_subplots(
        rows=n_rows,
        cols=2,
        subplot_titles=titles,
        horizontal_spacing=0.08,
        vertical_spacing=0.33 / n_rows,
    )
    for column, kind in enumerate(PROBED_ROWS, start=1):
        add_stream(figure, probed, kind, "top1", row=1, col=column, names=names, legend=column == 1)
    for i, effects in enumerate(ablated, start=2):
        for column, (measure, factor) in enumerate(
            (("delta_top1", 100), ("delta_loss", 1)), start=1
        ):
            _add_ablations(figure, effects, measure, factor, i, column)
    captions = dict.fromkeys(map(_caption, ablated))
    figure.update_layout(
        title={
            "text": f"Where the model works it out<br><sup>{probed.measured_on()}<br>"
            f"{'<br>'.join(captions)}<br>bars: 95 % bootstrap over images, those of "
            "ablations paired with the unaltered model</sup>"
        },
        width=1000,
        height=190 + 330 * n_rows + 16 * len(captions),
        legend={"orientation": "h", "y": -0.08, "yanchor": "top"},
    )
    return finish(figure).update_layout(margin={"t": 145 + 16 * len(captions)})


def _caption(effects: CausalEffects) -> str:
    assert effects.readings is not None
    original = effects.readings["original"]
    return (
        f"ablated rows set to {FILL_NAMES[effects.fill]}, N = {effects.n}, seed {effects.seed}; "
        f"unaltered: top-1 {100 * original.top1:.2f} %, loss {original.loss:.4f} nats, readout: "
        f"{effects.readout}"
    )


def _add_ablations(
    figure: go.Figure, effects: CausalEffects, measure: str, factor: int, row: int, column: int
) -> None:
    frame = effects.to_frame().query("target == 'output' and path == 'total'")
    found = frame[frame["measure"] == measure].set_index("layers")
    legend = row == 2 and column == 1
    for label, sets, colour, dash, symbol in _sets(effects.n_layers):
        if not all(name in found.index for _, name in sets):
            continue  # a line through some of the layers would hide that the others were not read
        own: pd.DataFrame = found.loc[[name for _, name in sets]]
        add_points(
            figure,
            [s for s, _ in sets],
            tuple(own[end] * factor for end in ("value", "low", "high")),
            name=label,
            colour=colour,
            dash=dash,
            symbol=symbol,
            hover="layers %{customdata}: %{y:.4g}",
            legend=legend,
            customdata=own.index.tolist(),
            row=row,
            col=column,
        )
    floor = {LEVELS["every_layer"]: float(np.asarray(found["floor"])[0]) * factor}
    add_levels(figure, [0, effects.n_layers - 1], floor, legend=legend, row=row, col=column)
    figure.update_xaxes(title_text="layer s", dtick=1, title_standoff=5, row=row, col=column)


def _sets(n: int) -> Iterator[tuple[str, list[tuple[int, str]], str, str, str]]:
    """What is drawn: label, (s, name of the set) for each s, colour, dash and symbol."""
    kinds = (
        ("layer s alone ablated", {s: range(s, s + 1) for s in range(n)}, ORANGE, "dot", "circle"),
        (
            "layers s and s + 1",
            {s: range(s, s + 2) for s in range(n - 1)},
            AMBER,
            "dash",
            "diamond",
        ),
        ("layers s to the last", {s: range(s, n) for s in range(n)}, BLUE, "solid", "square"),
        ("layers 0 to s", {s: range(s + 1) for s in range(n)}, GREEN, "dash", "triangle-up"),
    )
    for label, ranges, colour, dash, symbol in kinds:
        yield label, [(s, layers_text(each)) for s, each in ranges.items()], colour, dash, symbol
