"""A study's figure and table as files: HTML, JSON and PNG; CSV, Markdown and LaTeX."""

from __future__ import annotations

from math import isnan
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from pandas.api.types import is_numeric_dtype
from tabulate import tabulate

from vit_clt.errors import InputError
from vit_clt.outputs import OutputFolder

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"²": "$^2$", "→": r"$\to$", "ŷ": r"$\hat{y}$"}
)


def study_files(name: str) -> tuple[str, ...]:
    """Every file `write_study` may write, and metrics.json."""
    kinds = ("html", "json", "png", "csv", "md", "tex")
    return (*(f"{name}.{kind}" for kind in kinds), "metrics.json")


def write_study(
    folder: OutputFolder,
    name: str,
    figure: go.Figure,
    table: pd.DataFrame,
    caption: str,
    *,
    shown: pd.DataFrame | None = None,
    page: str | None = None,
    png: bool = False,
) -> None:
    """Write NAME.html and .json (the figure), .csv, .md and .tex (the table) and, asked for, .png.

    Args:
        folder: where, already open.
        name: the files' stem.
        figure: the figure; its JSON opens with `plotly.io.read_json`.
        table: every number, for the CSV at full precision.
        caption: what a reader of the table alone must know: data, N, rows, trajectory, L0, seed.
        shown: a table made for reading, for Markdown and LaTeX; default: `table`.
        page: a whole HTML page that stands for the figure's own.
        png: draw a PNG too (`check_png` first).
    """
    html = page or figure.to_html(include_plotlyjs=True, div_id=name)
    folder.write(f"{name}.html", html)
    folder.write(f"{name}.json", figure.to_json(pretty=False, engine="json") + "\n")
    folder.write(f"{name}.csv", table.to_csv(index=False))
    readable = table if shown is None else shown
    folder.write(f"{name}.md", markdown_table(readable, caption))
    folder.write(f"{name}.tex", latex_table(readable, caption))
    if png:
        folder.write(f"{name}.png", figure.to_image(format="png", scale=2))


def markdown_table(table: pd.DataFrame, caption: str) -> str:
    """The table in GitHub's Markdown, below its caption; four significant digits."""
    return f"{caption}\n\n{_table(table, 'github')}\n"


def latex_table(table: pd.DataFrame, caption: str) -> str:
    """The table as a LaTeX float with booktabs rules; four significant digits."""
    body = _table(table, "latex_booktabs")
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{caption.translate(_LATEX)}}}\n{body}\n\\end{{table}}\n"
    )


def check_png() -> None:
    """Find what PNGs are drawn with, before any work is done.

    Raises:
        InputError: the extra `png` or a browser is missing.
    """
    try:
        from choreographer.browsers.chromium import Chromium
    except ImportError as error:
        raise InputError(
            "png", "is on, but kaleido is not installed; expected pip install 'vit-clt[png]'."
        ) from error
    if Chromium.find_browser(skip_local=False) is None:
        raise InputError(
            "png", "is on, but no browser was found; expected Chrome or Chromium on this machine."
        )


def _table(table: pd.DataFrame, style: str) -> str:
    cells = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    align = ["right" if is_numeric_dtype(kind) else "left" for kind in table.dtypes]
    # cells are text already: parsed again, "0.500" would come out as 0.5
    headers = [str(name) for name in table.columns]
    return tabulate(cells, headers, style, colalign=align, disable_numparse=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)
