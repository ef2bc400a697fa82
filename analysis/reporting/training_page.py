"""The page of a training run: curves per layer from train.jsonl, during the run or after it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, Level, add_levels
from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.reporting.style import BLUE, GREEN, GREY, INK, ORANGE, finish, log_axis
from vit_clt.errors import InputError

MOST_POINTS = 2000
"""The most points of a line; longer ones are thinned, so that the page still opens quickly."""
LEAD = (
    "Start with the first figure. FVU is the share of the variance of an MLP's output that the CLT "
    "leaves unexplained: 1 is no better than predicting the mean, lower is better. CLS and patch "
    "rows stand apart because CLS is one row among many and its fit hardly shows in the loss. "
    "Layers run from dark (layer 0) to light (the last); hover to read a value, click a legend "
    "entry to hide its line, double-click to see it alone."
)
_Record = dict[str, Any]
_Points = list[tuple[int, float]]


@dataclass(frozen=True)
class _Line:
    name: str
    points: _Points
    colour: str = BLUE
    dash: str = "solid"


@dataclass(frozen=True)
class _Panel:
    title: str
    unit: str
    lines: Sequence[_Line]
    log: bool = False
    stacked: bool = False
    from_zero: bool = False
    level: tuple[float, Level] | None = None
    """Height of a horizontal line, and which it is: a floor or a target."""

    def heights(self) -> list[float]:
        """Every height that is drawn."""
        level = [] if self.level is None else [self.level[0]]
        return [value for line in self.lines for _, value in line.points] + level


def read_log(path: str | Path) -> list[_Record]:
    """The records of a train.jsonl that are still valid, in order.

    A line that was cut off when the process was killed is dropped. A record
    `{"event": "start", "step": N}` says that a process went on from step N; earlier records of
    steps after N are dropped, since those steps were computed again.

    Raises:
        InputError: the file cannot be read.
    """
    records: list[_Record] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for record in filter(None, map(_parse, lines)):
                if record.get("event") == "start":
                    records = [r for r in records if r.get("step", 0) <= record["step"]]
                records.append(record)
    except OSError as error:
        raise InputError(
            "log", f"is {path}, which cannot be read ({error.strerror}); expected a train.jsonl."
        ) from error
    return records


def fit_figure(records: Sequence[_Record]) -> go.Figure:
    """FVU by step of CLS and patch rows, per layer where images were held out."""
    steps = [r for r in records if "event" not in r]
    return _fvu_figure(steps, [r for r in records if r.get("event") == "validation"])


def training_report(records: Sequence[_Record], *, title: str, facts: dict[str, str]) -> str:
    """The page of a training run, as self-contained HTML.

    Panels without a record are left out. Until the first validation the page shows the FVU of the
    training batches, and says so.

    Args:
        records: what `read_log` returns.
        title: heading of the page.
        facts: facts of the run, value by name; "L0 target" is drawn where it is a number.
    """
    steps = [r for r in records if "event" not in r]
    validations = [r for r in records if r.get("event") == "validation"]
    run = Section("Run", facts={**facts, **_facts(records, steps, validations)})
    if not steps and not validations:
        lead = "Nothing has been logged yet. Make this page again after the first log record."
        return render_report(title, lead, [run])
    loss = _by_layer(steps, "loss_by_layer")
    total = [
        _line("sum over layers", steps, "loss", INK),
        _line("auxiliary term", steps, "aux", ORANGE, "dash"),
    ]
    active = [*_by_layer(steps, "l0_by_layer"), _line("mean", steps, "l0", INK, "dash")]
    dead = [
        *_by_layer(steps, "dead_by_layer", 100),
        _line("mean", steps, "dead", INK, "dash", 100),
    ]
    lr, penalty, gradient, rate = (
        [_line(key, steps, key)] for key in ("lr", "sparsity", "grad_norm", "tokens_per_second")
    )
    figures = {
        "Fit": _fvu_figure(steps, validations),
        "Loss": _draw(
            "Loss of the training batches",
            "squared error a token, in normalised space",
            _Panel("per layer", "squared error", loss, log=True),
            _Panel("all layers", "squared error", total, log=True),
        ),
        "Sparsity": _draw(
            "Active and dead features",
            "in the training batches",
            _Panel(
                "active features (L0)",
                "features a token",
                active,
                from_zero=True,
                level=_target(facts),
            ),
            _Panel("dead features", "% of the features", dead),
        ),
        "Schedule": _draw(
            "Learning rate, λ and gradient",
            "λ weighs the penalty of JumpReLU; top-k has none",
            _Panel("learning rate", "lr", lr),
            _Panel("λ", "weight of the penalty", penalty),
            _Panel("gradient", "norm", gradient, log=True),
        ),
        "Speed": _draw(
            "Speed and where the time goes",
            "what the time between two records went into",
            _Panel("throughput", "token rows / s", rate),
            _Panel("shares of the time", "% of the time", _waits(steps), stacked=True),
        ),
    }
    sections = [run]
    for name, figure in figures.items():
        if figure.data:
            sections.append(Section(name, figures=[_mark(figure, _resumed(records))]))
    return render_report(title, LEAD, [*sections, *_table(steps, validations)])


def _parse(line: str) -> _Record | None:
    # A resumed process appends, so its first record may follow a cut-off one on the same line.
    for text in (line, line[max(0, line.rfind('{"event"')) :]):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            return record
    return None


def _resumed(records: Sequence[_Record]) -> list[int]:
    starts = (r["step"] for r in records if r.get("event") == "start")
    return list(dict.fromkeys(step for step in starts if step > 0))


def _facts(
    records: Sequence[_Record], steps: Sequence[_Record], validations: Sequence[_Record]
) -> dict[str, str]:
    facts = {"Logged": f"{len(steps)} step records, {len(validations)} validations"}
    if len(steps) > MOST_POINTS:
        facts["Logged"] += f"; lines are thinned to at most {MOST_POINTS} points"
    if steps:
        epoch = f", in epoch {steps[-1]['epoch'] + 1}" if "epoch" in steps[-1] else ""
        facts["Last step"] = f"{steps[-1]['step']}{epoch}"
        if steps[-1].get("skipped"):
            facts["Unreadable images"] = f"{steps[-1]['skipped']} skipped"
    if resumed := _resumed(records):
        listed = ", ".join(map(str, resumed))
        facts["Interruptions"] = f"resumed at step{'s' * (len(resumed) > 1)} {listed}"
    return facts


def _target(facts: dict[str, str]) -> tuple[float, Level] | None:
    try:
        target = float(facts["L0 target"])
    except (KeyError, ValueError):
        return None
    return target, LEVELS["target"].named(f"target {target:g}")


def _points(pairs: Iterable[tuple[int, Any]], factor: float | int = 1) -> _Points:
    """Defined values by step, thinned to `MOST_POINTS`; the last one always stays."""
    defined = [(step, value) for step, value in pairs if value is not None and isfinite(value)]
    stride = max(1, ceil((len(defined) - 1) / (MOST_POINTS - 1)))
    last = len(defined) - 1
    kept = defined[:last:stride] + defined[last:] if defined else []
    # Five digits are more than a screen shows, and make the page half as large.
    return [(step, float(f"{value * factor:.5g}")) for step, value in kept]


def _line(
    name: str,
    records: Sequence[_Record],
    key: str,
    colour: str = BLUE,
    dash: str = "solid",
    factor: float | int = 1,
) -> _Line:
    return _Line(name, _points(((r["step"], r.get(key)) for r in records), factor), colour, dash)


def _by_layer(records: Sequence[_Record], key: str, factor: float | int = 1) -> list[_Line]:
    logged = [r for r in records if r.get(key)]
    n = len(logged[-1][key]) if logged else 0
    # The light end of the scale is too pale for a line on white.
    colours = sample_colorscale("Viridis", [0.9 * l / max(1, n - 1) for l in range(n)])
    return [
        _Line(f"layer {l}", _points(((r["step"], r[key][l]) for r in logged), factor), colour)
        for l, colour in enumerate(colours)
    ]


def _waits(steps: Sequence[_Record]) -> list[_Line]:
    logged = [r for r in steps if r.get("waits")]
    return [
        _Line(name, _points(((r["step"], r["waits"].get(key)) for r in logged), 100), colour)
        for name, key, colour in (
            ("CLT step", "step", BLUE),
            ("ViT forward", "vit", GREEN),
            ("waiting for images", "images", ORANGE),
        )
    ]


def _fvu_figure(steps: Sequence[_Record], validations: Sequence[_Record]) -> go.Figure:
    panels = []
    for kind, name in (("cls", "CLS rows"), ("patch", "patch rows")):
        lines = _by_layer(validations, f"fvu_{kind}_by_layer")
        if not validations:
            lines = [_line("mean over layers", steps, f"fvu_{kind}")]
        floor = (1.0, LEVELS["mean_predictor"].named("FVU = 1: predicting<br>the mean"))
        panels.append(_Panel(name, "FVU", lines, log=True, level=floor))
    if validations:
        heading = "Held-out FVU per layer"
        note = f"{validations[-1].get('n_images', 'some')} images that are not trained on"
    else:
        heading = "FVU of the training batches"
        note = "means over layers; nothing was validated"
    figure = _draw(heading, note, *panels)
    # Both panels share one scale, which needs one set of ticks.
    if figure.data:
        log_axis(figure, [v for panel in panels for v in panel.heights()])
        figure.update_yaxes(matches="y")
    return figure


def _draw(title: str, note: str, *panels: _Panel) -> go.Figure:
    """Panels side by side against the step; those without a point are left out."""
    shown = [p for p in panels if any(line.points for line in p.lines)]
    figure = make_subplots(
        rows=1,
        cols=max(1, len(shown)),
        subplot_titles=[panel.title for panel in shown],
        horizontal_spacing=0.1,
    )
    in_legend: set[str] = set()
    for column, panel in enumerate(shown, start=1):
        lines = [line for line in panel.lines if line.points]
        names = {line.name for line in lines} if len(lines) > 1 else set()
        for line in lines:
            # Lines of few points, such as those of validations, also show the points.
            dots = len(line.points) <= 40 and not panel.stacked
            trace = go.Scatter(
                x=[step for step, _ in line.points],
                y=[value for _, value in line.points],
                name=line.name,
                legendgroup=line.name,
                showlegend=line.name in names - in_legend,
                mode="lines+markers" if dots else "lines",
                marker={"size": 5},
                line={"color": line.colour, "dash": line.dash, "width": 1.5},
                stackgroup="all" if panel.stacked else None,
                hovertemplate=f"{line.name}, step %{{x:d}}: %{{y:.4~r}}<extra></extra>",
            )
            figure.add_trace(trace, row=1, col=column)
        in_legend |= names
        if panel.level is not None:
            height, level = panel.level
            steps = [line.points[i][0] for line in lines for i in (0, -1)]
            ends = [min(steps), max(steps)]
            legend = level.label not in in_legend
            add_levels(figure, ends, {level: height}, legend=legend, row=1, col=column)
            in_legend.add(level.label)
        figure.update_yaxes(title_text=panel.unit + " (log)" * panel.log, col=column)
        if panel.log:
            log_axis(figure, panel.heights(), col=column)
        if panel.from_zero:
            figure.update_yaxes(rangemode="tozero", col=column)
        if panel.stacked:
            figure.update_yaxes(range=[0, 100], col=column)
    figure.update_xaxes(title_text="step", rangemode="tozero")
    # Without this format plotly writes 150µ for 0.00015.
    figure.update_xaxes(tickformat="~r").update_yaxes(tickformat="~r")
    figure.update_layout(
        title={"text": f"{title}<br><sup>{note}</sup>"},
        width=1000,
        height=max(430, 210 + 19 * len(in_legend)),  # 19 pixels an entry of the legend
        legend={"font": {"size": 12}, "tracegroupgap": 0},
    )
    return finish(figure).update_layout(margin={"t": 95})


def _mark(figure: go.Figure, resumed: Sequence[int]) -> go.Figure:
    for step in resumed:
        figure.add_vline(x=step, line={"color": GREY, "dash": "dot", "width": 1})
    if resumed:
        text = figure.layout.title.text.replace("</sup>", "<br>dotted: resumed</sup>")
        figure.update_layout(title={"text": text})
    return figure


def _table(steps: Sequence[_Record], validations: Sequence[_Record]) -> list[Section]:
    step = steps[-1] if steps else {}
    validation = validations[-1] if validations else {}
    if validation:
        origin = f"FVU and L0: validation at step {validation['step']}. Dead: "
    else:
        origin = "Nothing was validated. L0 and dead: "
    columns = {
        "FVU CLS": (validation.get("fvu_cls_by_layer"), "{:.3f}"),
        "FVU patches": (validation.get("fvu_patch_by_layer"), "{:.3f}"),
        "L0": ((validation or step).get("l0_by_layer"), "{:.1f}"),
        "dead": (step.get("dead_by_layer"), "{:.1%}"),
    }
    frame = pd.DataFrame(
        {
            name: pd.Series([None if v is None else form.format(v) for v in values])
            for name, (values, form) in columns.items()
            if values
        }
    )
    if frame.empty:
        return []
    frame.insert(0, "layer", frame.index)
    origin += f"training, step {step['step']}." if step else "not logged."
    return [Section("Last values per layer", [origin], [frame])]
