"""Plain tables on a terminal, as wide as it is at the most."""

from __future__ import annotations

from collections.abc import Sequence
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = 100  # where output goes to no terminal
_BETWEEN = 2  # spaces that tabulate leaves between columns
_BESIDE_NAME = 2  # spaces that tabulate leaves beside the name of a column


def print_table(table: pd.DataFrame) -> None:
    """Print a plain table, the first column aligned left and the others right.

    Where it is wider than the terminal its widest columns wrap, and text that wraps is aligned
    left. A table of which single words are too wide for that stays wider.
    """
    from tabulate import tabulate

    # what is missing stays a NaN under astype(str)
    rows = [[str(cell) for cell in row] for row in table.to_numpy(object).tolist()]
    names = list(map(str, table.columns))
    columns = [_Column(name, [row[i] for row in rows]) for i, name in enumerate(names)]
    _fit(columns, get_terminal_size((_COLUMNS, 24)).columns)
    widths = [column.width for column in columns]
    left = [i == 0 or column.text > column.width for i, column in enumerate(columns)]
    # tabulate's own wrapping takes "90,880" for a number and fails
    names, *rows = [list(map(_wrapped, row, widths)) for row in (names, *rows)]
    align = ["left" if each else "right" for each in left]
    print(tabulate(rows, names, "plain", colalign=align, disable_numparse=True))


def _wrapped(cell: str, width: int) -> str:
    """A cell on lines of at most this width, where its words are not longer."""
    if len(cell) <= width:
        return cell
    return fill(cell, width, break_long_words=False, break_on_hyphens=False)


class _Column:
    """Widths of one column, in characters."""

    def __init__(self, name: str, cells: Sequence[str]):
        self.name = len(name)
        self.text = max(map(len, cells), default=0)
        self.least = max(len(word) for cell in (name, *cells) for word in cell.split() or [""])
        self.width = max(self.name, self.text)
        """Width at which text wraps."""

    @property
    def printed(self) -> int:
        """Characters that the column takes."""
        return max(min(self.name, self.width) + _BESIDE_NAME, min(self.text, self.width))


def _fit(columns: Sequence[_Column], room: int) -> None:
    """Make the widest columns narrower until all fit, or until no word would fit otherwise."""
    while sum(column.printed + _BETWEEN for column in columns) - _BETWEEN > room:
        wide = [column for column in columns if column.width > column.least]
        if not wide:
            break
        max(wide, key=lambda column: column.width).width -= 1
