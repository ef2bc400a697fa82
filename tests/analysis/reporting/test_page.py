"""The report page: self-contained, and legible in a real browser where one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from vit_clt.analysis.reporting.page import Section, render_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--virtual-time-budget=8000",
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    figure = go.Figure(go.Heatmap(z=[[0.0, 1.0], [1.0, 0.0]]))
    table = pd.DataFrame({"rows": ["<b>CLS</b>"], "value": [float("nan")]})
    sections = [
        Section("One & only", ["a < b"], [table], [figure]),
        Section("Two", figures=[figure], facts={"Model": "digits"}),
    ]
    path = tmp_path / "report.html"
    path.write_text(render_report("Title <1>", "Lead.", sections))
    return path


def test_the_page_stands_alone(page: Path):
    text = page.read_text()
    assert text.count("plotly.js v") == 1
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', text)
    assert "Title &lt;1&gt;" in text
    assert "&lt;b&gt;CLS" in text
    assert "undefined" in text
    assert 'href="#one-only"' in text
    assert 'id="one-only"' in text
    assert "prefers-color-scheme: dark" in text


def test_columns_of_long_text_are_marked():
    table = pd.DataFrame({"part": ["a", "b"], "why": ["<td>" * 8, "short"], "N": [1, 2]})
    text = render_report("Title", "Lead.", [Section("One", tables=[table])])
    assert re.findall(r'<t[hd] class="long">([^<]*)</t', text) == ["why", "&lt;td&gt;" * 8, "short"]


def test_the_page_is_reproducible(page: Path):
    again = render_report("Title <1>", "Lead.", [Section("Two")])
    assert again == render_report("Title <1>", "Lead.", [Section("Two")])
    assert 'id="figure-0"' in page.read_text()
    assert 'id="figure-1"' in page.read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, to look at the page")
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(page: Path, tmp_path: Path, dark: bool):
    shot = tmp_path / "shot.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browser = [str(CHROMIUM), *FLAGS, *scheme, f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run(
        [*browser, "--window-size=1100,1500", f"--screenshot={shot}", f"file://{page}"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    background = pixels[-5, 5].sum() / 3
    assert background < 60 if dark else background > 200
    # the heatmaps are drawn: saturated colour somewhere
    assert (pixels.max(-1) - pixels.min(-1)).max() > 100
    dom = subprocess.run(
        [*browser, "--dump-dom", f"file://{page}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert dom.count('class="heatmaplayer') >= 2
