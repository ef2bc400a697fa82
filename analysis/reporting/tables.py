"""Tables as Markdown and LaTeX."""

from __future__ import annotations

from math import isnan
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype
from tabulate import tabulate

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"²": "$^2$", "→": r"$\to$", "ŷ": r"$\hat{y}$"}
)


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


def _table(table: pd.DataFrame, style: str) -> str:
    cells = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    align = ["right" if is_numeric_dtype(kind) else "left" for kind in table.dtypes]
    # Cells are text already; tabulate would parse "0.500" and print 0.5.
    headers = [str(name) for name in table.columns]
    return tabulate(cells, headers, style, colalign=align, disable_numparse=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)
