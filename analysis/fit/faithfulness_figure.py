"""Surrogate faithfulness as a figure and as a page: every number beside its floors."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, Level, add_levels
from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.reporting.style import BLUE, ROW_NAMES, accuracy_axis, finish, or_none

if TYPE_CHECKING:
    from vit_clt.analysis.fit.faithfulness_study import SurrogateFaithfulness
    from vit_clt.analysis.fit.surrogate_embeddings import Version

_COLUMNS = 4
_VERSIONS: dict[Version, Level] = {
    "surrogate": Level("with the CLT", BLUE, "solid", "circle"),
    "floor_mean": LEVELS["floor_mean"],
    "floor_zero": LEVELS["floor_zero"],
}
READING = (
    "Every number compares a version of the model with the unaltered one on the same images. The "
    "floors are surrogates that know nothing of the image at these rows: a CLT that scores as they "
    "do has shown nothing, and where they score well, these rows hardly matter and no number here "
    "tells a good CLT from a bad one."
)


def faithfulness_figure(result: SurrogateFaithfulness) -> go.Figure:
    """A panel per measure: the CLT beside both floors, the unaltered model as a line."""
    n_rows = -(-len(result.measures) // _COLUMNS)
    figure = make_subplots(
        rows=n_rows,
        cols=_COLUMNS,
        subplot_titles=[measure.label for measure in result.measures],
        horizontal_spacing=0.07,
        vertical_spacing=0.11,
    )
    for i, measure in enumerate(result.measures):
        row, column = i // _COLUMNS + 1, i % _COLUMNS + 1
        factor = 100 if measure.percent else 1
        for version, style in _VERSIONS.items():
            e = result.at(measure.name, version)
            figure.add_trace(
                go.Scatter(
                    x=[style.label],
                    y=[or_none(factor * e)],
                    error_y={
                        "array": [or_none(factor * (e.high - e))],
                        "arrayminus": [or_none(factor * (e - e.low))],
                        "thickness": 1.5,
                    },
                    name=style.label,
                    legendgroup=version,
                    showlegend=i == 0,
                    mode="markers",
                    marker=style.marker(10),
                    hovertemplate=f"{style.label}: %{{y:.4g}}<extra></extra>",
                ),
                row=row,
                col=column,
            )
        add_levels(
            figure,
            [style.label for style in _VERSIONS.values()],
            {LEVELS["original"]: factor * result.at(measure.name, "original")},
            legend=i == 0,
            row=row,
            col=column,
        )
        if measure.percent:
            accuracy_axis(figure, row=row, col=column)
    figure.update_xaxes(showticklabels=False, range=[-0.5, len(_VERSIONS) - 0.5])
    figure.update_annotations(font_size=13)
    figure.update_layout(
        title={"text": f"{_title(result)}<br><sup>{_subtitle(result)}</sup>"},
        width=1000,
        height=130 + 190 * n_rows,
        legend={"orientation": "h", "y": -0.04},
    )
    return finish(figure)


def faithfulness_report(result: SurrogateFaithfulness) -> str:
    """The page as self-contained HTML: the figure, every number, every prompt template."""
    prompts = len(result.by_template)
    notes = [
        "Intervals are 95 % bootstrap over images, paired with the unaltered model; linear CKA and "
        "Spearman have none.",
    ]
    if result.no_op:
        notes.append("These rows cannot reach the output: replacing them is a no-op.")
    if prompts and isnan(result.at("prompt_r")):
        notes.append(
            "Prompt r is undefined: the accuracy of a version does not differ between templates."
        )
    elif prompts and isnan(result.at("prompt_r").low):
        notes.append(
            "Prompt r has no interval: in some resamples an accuracy does not differ between "
            "templates, so there is too little to correlate."
        )
    sections = [
        Section(
            "What was compared",
            [READING],
            facts={
                "Replaced": f"{ROW_NAMES[result.tokens]}, layers {result.layer_range}, "
                f"{result.inputs} inputs",
                "Images": f"{result.data}, N = {result.n}; similarities of "
                f"{result.n_of('spearman')} of them",
                "Readout": f"{result.readout}; {prompts} templates one by one"
                if prompts
                else result.readout,
                "CLT": f"L0 = {result.l0:.1f} a token on these rows (teacher trajectory)",
                "Seed": str(result.seed),
            },
        ),
        Section("Against its floors", figures=[faithfulness_figure(result)]),
        Section("Every number", notes, [result.shown()]),
    ]
    if prompts:
        title = "Prompt by prompt"
        text = "Top-1 accuracy in percent and mean KL in nats with each template alone."
        sections.append(Section(title, [text], [_template_table(result)]))
    lead = (
        "How closely does the model follow the original when a cross-layer transcoder (CLT) stands "
        "in for its MLPs?"
    )
    return render_report(_title(result), lead, sections)


def _template_table(result: SurrogateFaithfulness) -> pd.DataFrame:
    frame = result.by_template
    shown = {"template": frame["template"]}
    for column, label in (
        ("top1", "with the CLT"),
        ("baseline", "unaltered"),
        ("floor_mean", "at mean"),
        ("floor_zero", "at zero"),
    ):
        shown[f"{label}, %"] = frame[column].map(lambda v: f"{100 * v:.2f}")
    for column, label in (
        ("kl", "with the CLT"),
        ("kl_floor_mean", "at mean"),
        ("kl_floor_zero", "at zero"),
    ):
        shown[f"KL, {label}"] = frame[column].map(lambda v: f"{v:.4f}")
    return pd.DataFrame(shown)


def _title(result: SurrogateFaithfulness) -> str:
    plural = "s" if len(result.layers) > 1 else ""
    no_op = " — a no-op" if result.no_op else ""
    return (
        f"Surrogate faithfulness: {ROW_NAMES[result.tokens]}, layer{plural} "
        f"{result.layer_range}{no_op}"
    )


def _subtitle(result: SurrogateFaithfulness) -> str:
    return (
        f"{result.data}, N = {result.n} (similarities of {result.n_of('spearman')}), "
        f"{result.inputs} inputs, L0 = {result.l0:.1f}<br>readout: "
        f"{result.readout}, seed {result.seed}; bars: 95 % bootstrap over images"
    )
