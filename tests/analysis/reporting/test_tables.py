"""Tables as a README shows them and as a paper includes them."""

import io
import re

import pandas as pd

from vit_clt.analysis.reporting.tables import csv_table, latex_table, markdown_table

TABLE = pd.DataFrame(
    {"rows": ["cls", "50 % of all_rows"], "top1": [0.123456789, float("nan")], "n": [10, 2000]}
)
CAPTION = "data_name, N = 10, R² at 100 % & more"


def test_markdown_has_the_caption_and_each_cell():
    caption, _, header, rule, *rows = markdown_table(TABLE, CAPTION).splitlines()
    assert caption == CAPTION
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    assert cells == [
        ["rows", "top1", "n"],
        ["cls", "0.1235", "10"],
        ["50 % of all_rows", "", "2000"],
    ]
    assert re.fullmatch(r"\|[-:|]+\|", rule)


def test_text_that_looks_like_a_number_stays_as_it_is():
    assert "| 0.500" in markdown_table(pd.DataFrame({"short": ["0.500"]}), CAPTION)


def test_latex_escapes_what_would_not_compile():
    text = latex_table(TABLE, CAPTION)
    assert r"\caption{data\_name, N = 10, R$^2$ at 100 \% \& more}" in text
    assert r"50 \% of all\_rows" in text
    assert r"\toprule" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_csv_keeps_what_looks_like_a_formula_as_text_and_every_number_as_it_is():
    names = ["=1+1", "+cmd", "-x", "@a", "\x1b[31mred", "-", "cat", None]
    table = pd.DataFrame({"=name": names, "n": range(8), "top1": [-1 / 3] * 8})
    table.index = [0] * 8  # as after a concatenation
    read = pd.read_csv(io.StringIO(csv_table(table)))
    assert list(read.columns) == ["'=name", "n", "top1"]
    assert list(read["'=name"])[:7] == ["'=1+1", "'+cmd", "'-x", "'@a", "[31mred", "-", "cat"]
    assert list(read["top1"]) == [-1 / 3] * 8
    assert csv_table(TABLE) == TABLE.to_csv(index=False)


def test_a_name_cannot_end_a_cell_of_markdown():
    row = markdown_table(pd.DataFrame({"class": ["a|b\nc\x1b[2J"]}), CAPTION).splitlines()[-1]
    assert "a\\|b c[2J" in row
