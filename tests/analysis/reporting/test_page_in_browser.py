"""Pages on narrow and dark screens: one column, nothing cut, charts as dark as their page."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pandas as pd
import plotly.graph_objects as go
import pytest
from browser import Page, browser_page, chromium
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.reporting.style import BLUE, INK, finish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs chromium, to look at the page"),
]
TITLE = "Two rows of panels<br><sup>a note that is far too long for one line of a narrow page</sup>"


def panelled() -> go.Figure:
    figure = make_subplots(rows=2, cols=2, subplot_titles=["a", "b", "c", "d"], shared_yaxes=True)
    for i in range(4):
        line = {"color": INK if i else BLUE}
        trace = go.Scatter(x=[0, 1], y=[i, 2 * i + 1], name=f"line {i}", line=line)
        figure.add_trace(trace, row=i // 2 + 1, col=i % 2 + 1)
    figure.update_layout(title={"text": TITLE}, width=1100, height=800)
    return finish(figure)


def of_classes() -> go.Figure:
    """Bars of classes that are called as colours are."""
    marker = {"color": [0, 1], "colorscale": [[0, "white"], [1, INK]], "line": {"color": "black"}}
    names = ["white", "black"]
    return go.Figure(go.Bar(x=names, y=[1, 2], text=names, name="black", marker=marker))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    table = pd.DataFrame({"a column with a long name": ["a" * 60], "b": [1]})
    heatmap = go.Figure(go.Heatmap(z=[[0.0, 1.0], [1.0, 0.0]]))
    text = {"part": ["above depth"], "holds": ["no"], "measured": ["words of a reason " * 9]}
    reasons = pd.DataFrame(
        {**text, "loss of the deepest": ["0.5 [0.25, 0.75], floor 0.125 "], "N": [1]}
    )
    section = Section("One", tables=[table, reasons], figures=[panelled(), heatmap, of_classes()])
    (folder / "page.html").write_text(render_report("Title", "Lead.", [section]))
    with browser_page(folder / "profile") as tab:
        tab.size(1280, 900)
        tab.open((folder / "page.html").as_uri())
        yield tab
        assert tab.errors == []
        assert all(address.startswith(("file:", "data:", "blob:")) for address in tab.requests)


def drawn(page: Page, width: int, *, dark: bool = False) -> None:
    page.size(width, 900, dark=dark)
    page.until(f"innerWidth === {width}")
    background = "34, 37, 42" if dark else "255, 255, 255"
    page.until(
        "[...document.querySelectorAll('.main-svg')]"
        f".some((s) => getComputedStyle(s).backgroundColor === 'rgb({background})')"
        " && [...document.querySelectorAll('.js-plotly-plot')]"
        ".every((f) => Math.abs("
        "f._fullLayout.width - Math.min(1100, f.closest('figure').clientWidth)) < 12)"
    )


def domains(page: Page) -> list[list[float]]:
    return page.value(
        "['xaxis', 'xaxis2', 'xaxis3', 'xaxis4'].map("
        "(a) => document.querySelector('.js-plotly-plot')._fullLayout[a].domain)"
    )


def test_nothing_is_wider_than_the_page(page: Page) -> None:
    for width in (1280, 900, 390):
        drawn(page, width)
        assert page.value("document.documentElement.scrollWidth") <= width
        for box in page.value(
            "[...document.querySelectorAll('figure')].map((f) => [f.scrollWidth, f.clientWidth])"
        ):
            assert box[0] <= box[1]


def test_long_text_of_a_table_wraps_and_is_aligned_left(page: Page) -> None:
    drawn(page, 1280)
    assert page.value(
        "[...document.querySelectorAll('div.scroll')].every((t) => t.scrollWidth <= t.clientWidth)"
    )
    align = "[...document.querySelectorAll('div.scroll')[1].querySelectorAll('td')]"
    found = page.value(f"{align}.map((cell) => getComputedStyle(cell).textAlign)")
    assert found == ["left", "right", "left", "right", "right"]


def test_panels_stand_in_one_column_on_a_narrow_page_and_go_back(page: Page) -> None:
    drawn(page, 1280)
    wide = domains(page)
    assert len({tuple(domain) for domain in wide}) == 2
    drawn(page, 390)
    assert domains(page) == [[0, 1]] * 4
    rows = page.value(
        "['yaxis', 'yaxis2', 'yaxis3', 'yaxis4'].map("
        "(a) => document.querySelector('.js-plotly-plot')._fullLayout[a].domain)"
    )
    # in reading order, none over another
    assert all(above[0] > below[1] for above, below in pairwise(rows))
    # the page is as long as its figures: none is cut below
    assert page.value(
        "[...document.querySelectorAll('figure')].every((f) => f.scrollHeight <= f.clientHeight)"
    )
    drawn(page, 1280)
    assert domains(page) == wide


def test_charts_are_dark_on_a_dark_page_alone(page: Page) -> None:
    colours = "document.querySelector('.js-plotly-plot')._fullData.map((trace) => trace.line.color)"
    drawn(page, 1280, dark=True)
    assert page.value(colours) == ["#3fa0e0", *["#ececec"] * 3]
    drawn(page, 1280)
    assert page.value(colours) == [BLUE, *[INK] * 3]


def test_a_class_that_is_called_as_a_colour_keeps_its_name_on_a_dark_page(page: Page) -> None:
    drawn(page, 1280, dark=True)
    bars = "[...document.querySelectorAll('.js-plotly-plot')].at(-1).data[0]"
    found = page.value(f"(({{x, text, name, marker}}) => ({{x, text, name, marker}}))({bars})")
    names = ["white", "black"]
    assert (found["x"], found["text"], found["name"]) == (names, names, "black")
    assert found["marker"]["colorscale"] == [[0, "#22252a"], [1, "#ececec"]]
    assert found["marker"]["line"]["color"] == "#ececec"


def test_the_title_is_text_that_wraps_and_no_toolbar_covers_it(page: Page) -> None:
    drawn(page, 390)
    caption = page.value("document.querySelector('figcaption').innerText")
    assert caption.startswith("Two rows of panels\na note that is far too long")
    low, high = page.value(
        "[document.querySelector('figcaption').getBoundingClientRect().bottom,"
        " document.querySelector('.modebar').getBoundingClientRect().top]"
    )
    assert low <= high
