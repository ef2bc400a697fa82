"""A result tells the same in every form: files, a notebook's cell, and a printed table."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import plotly.io
import pytest

from vit_clt.analysis.reporting.notice import Notice
from vit_clt.analysis.reporting.study import Facts, Study, check_png, study_files, write_study
from vit_clt.errors import InputError
from vit_clt.metrics import Metric
from vit_clt.outputs import OutputFolder

NUMBERS = [0.123456789, 2.5]


@dataclass(frozen=True)
class Toy(Study):
    """Two numbers."""

    name = "toy"
    extra_files = ("toy_extra.csv",)
    numbers: Sequence[float]

    def facts(self) -> Facts:
        return Facts("noise <b>", 2, "cls", "teacher", 4.0, seed=7, more={"why": "a test"})

    def caption(self) -> str:
        return "noise <b>, N = 2"

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({"number": self.numbers})

    def metrics(self) -> list[Metric]:
        return [Metric(f"number_{i}", x, "nats", 2) for i, x in enumerate(self.numbers)]

    def figure(self) -> go.Figure:
        return go.Figure(go.Scatter(y=list(self.numbers))).update_layout(title={"text": "Toy<br>x"})

    def notes(self) -> Sequence[str]:
        return ["read it <with care>"]

    def extras(self) -> Iterable[tuple[str, str]]:
        return [("toy_extra.csv", "a\n1\n")]


@dataclass(frozen=True)
class Pair(Toy):
    """A toy that brings another."""

    name = "pair"
    extra_files = ()

    def extras(self) -> Iterable[tuple[str, str]]:
        return ()

    def companions(self) -> Sequence[Study]:
        return [Toy(NUMBERS)]


def test_every_form_holds_the_same_numbers(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out", study_files(Toy)).open()
    write_study(folder, Toy(NUMBERS), "toys")
    written = {path.name for path in folder.path.iterdir()}
    assert written == set(study_files(Toy)) - {"toy.png"}
    table = pd.read_csv(folder.path / "toy.csv")
    assert table["number"].tolist() == NUMBERS
    drawn = plotly.io.read_json(folder.path / "toy.json")
    assert list(drawn.data[0].y) == NUMBERS
    document = json.loads((folder.path / "metrics.json").read_text())
    assert [each["value"] for each in document["metrics"]] == NUMBERS
    context = document["context"]
    assert context["command"] == "toys"
    assert (context["l0"], context["seed"], context["why"]) == (4.0, 7, "a test")
    for kind in ("md", "tex"):
        assert "0.1235" in (folder.path / f"toy.{kind}").read_text()
    page = (folder.path / "toy.html").read_text()
    assert "<h1>Toy</h1>" in page
    assert "noise &lt;b&gt;" in page
    assert "noise <b>" not in page.split("<script")[0]
    assert "read it &lt;with care&gt;" in page


def test_the_fit_stands_in_the_head_of_every_page_and_in_the_metrics(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out", study_files(Pair, Toy)).open()
    table = pd.DataFrame({"layer": ["<0>"]})
    fits = [Notice("fits <well>", table=table, facts={"l0": [4.0]}), Notice("worse", True)]
    write_study(folder, Pair(NUMBERS[:1]), "toys", fits=fits)
    for name in ("pair.html", "toy.html"):
        head = (folder.path / name).read_text().split("</header>")[0]
        assert '<p class="notice note">fits &lt;well&gt;</p>' in head
        assert "<td>&lt;0&gt;</td>" in head
        # a warning is one without its colour too
        assert '<p class="notice warning"><strong>Warning:</strong> worse</p>' in head
    context = json.loads((folder.path / "metrics.json").read_text())["context"]
    assert context["fit"] == [{"l0": [4.0]}, {}]


def test_companions_are_written_beside_it(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out", study_files(Pair, Toy)).open()
    write_study(folder, Pair(NUMBERS[:1]), "toys")
    written = {path.name for path in folder.path.iterdir()}
    assert {"pair.csv", "toy.csv", "toy_extra.csv", "metrics.json"} <= written
    # metrics are those of the study itself
    assert len(json.loads((folder.path / "metrics.json").read_text())["metrics"]) == 1


def test_its_html_needs_nothing_else_however_often_it_is_asked_for() -> None:
    study = Toy(NUMBERS)
    for _ in range(2):
        shown = study._repr_html_()
        assert "<p>noise &lt;b&gt;, N = 2</p>" in shown
        assert "read it &lt;with care&gt;" in shown
        assert "plotly.js v" in shown
        assert "Plotly.newPlot" in shown
        cells = re.findall(r"<td>([^<]*)</td>", shown)
        assert [float(cell) for cell in cells] == pytest.approx(NUMBERS, abs=1e-6)


def test_a_notebook_shows_caption_figure_and_table(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("IPython.display")
    shown: list[object] = []
    monkeypatch.setattr(module, "display", lambda *objects: shown.extend(objects))
    study = Toy(NUMBERS)
    study._ipython_display_()
    caption, figure, table = shown
    assert "noise &lt;b&gt;, N = 2" in caption.data
    assert figure == study.figure()
    assert "0.123457" in table.data


def test_a_picture_is_drawn_where_a_browser_is(tmp_path: Path) -> None:
    try:
        check_png()
    except InputError as error:
        pytest.skip(str(error))
    folder = OutputFolder(tmp_path / "out", study_files(Toy)).open()
    write_study(folder, Toy(NUMBERS), "toys", png=True)
    assert (folder.path / "toy.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_a_browser_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chromium = pytest.importorskip("choreographer.browsers.chromium")
    monkeypatch.setattr(chromium.Chromium, "find_browser", lambda **_: None)
    with pytest.raises(InputError, match=r"^png is on, but no browser was found; expected Chrome"):
        check_png()


def test_a_picture_without_kaleido_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "choreographer.browsers.chromium", None)
    with pytest.raises(InputError, match=r"pip install 'vit-clt\[png\]'"):
        check_png()
