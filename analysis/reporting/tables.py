"""Tables as text, CSV, Markdown and LaTeX."""

from __future__ import annotations

from math import isnan
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from tabulate import tabulate

from vit_clt.text import plain_cell, printable

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"²": "$^2$", "→": r"$\to$", "ŷ": r"$\hat{y}$"}
)


def csv_table(table: pd.DataFrame) -> str:
    """The table as CSV at full precision; text that looks like a formula is kept as text."""
    shown = table.rename(columns=lambda name: plain_cell(str(name)))
    for i, kind in enumerate(table.dtypes):
        if not is_numeric_dtype(kind):
            cells = [plain_cell(c) if isinstance(c, str) else c for c in table.iloc[:, i]]
            shown.isetitem(i, np.array(cells, dtype=object))
    return str(shown.to_csv(index=False))


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


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its real numbers as text of three decimals."""
    numbers = table.select_dtypes("float").columns
    return table.assign(**{name: table[name].map(lambda v: f"{v:.3f}") for name in numbers})


def _table(table: pd.DataFrame, style: str) -> str:
    bar = "\\|" if style == "github" else "|"  # a bar would end the cell
    cells = [
        [_cell(value).replace("|", bar) for value in row] for row in table.itertuples(index=False)
    ]
    align = ["right" if is_numeric_dtype(kind) else "left" for kind in table.dtypes]
    # Cells are text already; tabulate would parse "0.500" and print 0.5.
    headers = [printable(str(name)) for name in table.columns]
    return tabulate(cells, headers, style, colalign=align, disable_numparse=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if isnan(value) else f"{value:.4g}"
    return "" if value is None else " ".join(printable(str(value)).split("\n"))
