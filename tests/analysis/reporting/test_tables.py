"""A study's files: what a reader opens, a spreadsheet reads, and a paper includes."""

import json
import re

import pandas as pd
import plotly.graph_objects as go
import plotly.io
import pytest

from vit_clt.analysis.reporting import files as exports
from vit_clt.errors import InputError
from vit_clt.outputs import OutputFolder

TABLE = pd.DataFrame(
    {"rows": ["cls", "50 % of all_rows"], "top1": [0.123456789, float("nan")], "n": [10, 2000]}
)
CAPTION = "data_name, N = 10, R² at 100 % & more"


@pytest.fixture
def figure():
    return go.Figure(go.Scatter(x=[0, 1], y=[2.5, 3.5]))


@pytest.fixture
def folder(tmp_path):
    return OutputFolder(tmp_path / "out", exports.study_files("study")).open()


def test_every_file_but_the_picture_is_written_and_reads_back(folder, figure):
    exports.write_study(folder, "study", figure, TABLE, CAPTION)
    expected = {f"study.{kind}" for kind in ("html", "json", "csv", "md", "tex")}
    assert {path.name for path in folder.path.iterdir()} == expected
    pd.testing.assert_frame_equal(pd.read_csv(folder.path / "study.csv"), TABLE)
    again = plotly.io.read_json(folder.path / "study.json")
    assert list(again.data[0].y) == [2.5, 3.5]
    assert json.loads((folder.path / "study.json").read_text())["data"][0]["y"] == [2.5, 3.5]
    assert 'id="study"' in (folder.path / "study.html").read_text()


def test_markdown_has_the_caption_and_each_cell(folder, figure):
    exports.write_study(folder, "study", figure, TABLE, CAPTION)
    caption, _, header, rule, *rows = (folder.path / "study.md").read_text().splitlines()
    assert caption == CAPTION
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    assert cells == [
        ["rows", "top1", "n"],
        ["cls", "0.1235", "10"],
        ["50 % of all_rows", "", "2000"],
    ]
    assert re.fullmatch(r"\|[-:|]+\|", rule)


def test_latex_escapes_what_would_not_compile(folder, figure):
    exports.write_study(folder, "study", figure, TABLE, CAPTION)
    text = (folder.path / "study.tex").read_text()
    assert r"\caption{data\_name, N = 10, R$^2$ at 100 \% \& more}" in text
    assert r"50 \% of all\_rows" in text
    assert r"\toprule" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_a_table_for_reading_stands_in_markdown_only(folder, figure):
    shown = pd.DataFrame({"short": ["0.500"]})
    exports.write_study(folder, "study", figure, TABLE, CAPTION, shown=shown, page="<p>whole</p>")
    assert "| 0.500" in (folder.path / "study.md").read_text()
    assert len(pd.read_csv(folder.path / "study.csv")) == 2
    assert (folder.path / "study.html").read_text() == "<p>whole</p>"


def test_a_picture_is_drawn_where_a_browser_is(folder, figure):
    try:
        exports.check_png()
    except InputError as error:
        pytest.skip(str(error))
    exports.write_study(folder, "study", figure, TABLE, CAPTION, png=True)
    assert (folder.path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_a_browser_is_refused_in_one_sentence(monkeypatch):
    chromium = pytest.importorskip("choreographer.browsers.chromium")
    monkeypatch.setattr(chromium.Chromium, "find_browser", lambda **_: None)
    with pytest.raises(InputError, match=r"^png is on, but no browser was found; expected Chrome"):
        exports.check_png()


def test_a_picture_without_kaleido_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "choreographer.browsers.chromium", None)
    with pytest.raises(InputError, match=r"pip install 'vit-clt\[png\]'"):
        exports.check_png()
