"""The explorer in a real browser: its links, addresses, keys, a narrow window and a dark one."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browser import Page, browser_page, chromium
from builders import random_clt, tiny_clip
from torchvision.transforms import Compose, Normalize

from vit_clt.analysis import explore
from vit_clt.analysis.explorer.result import Explorer
from vit_clt.analysis.graphs.group_file import read_groups
from vit_clt.analysis.reporting.study import study_files, write_study
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.outputs import OutputFolder

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium or Chrome on the PATH")


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[(5 * i + len(t)) % 63 for i in range(8)] for t in texts])


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    steps = Compose([Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
    vit = HookedViT(tiny_clip(), preprocess=steps, tokenizer=tokenize)
    images = torch.randn(20, 3, 12, 12, generator=torch.Generator().manual_seed(4))
    names = ["a <b>red", "a </script> green", "a blue"]
    data = TensorImages(images, torch.arange(20) % 3, names, name="noise")
    clt = random_clt(vit, n_features=96)
    return explore(vit, clt, data, graphs=3, interventions=4, top=4, effect_images=8, clt_name="C")


@pytest.fixture(scope="module")
def address(explorer: Explorer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("explorer") / "out"
    folder = OutputFolder(path, study_files(Explorer, png=False)).open()
    write_study(folder, explorer, "explore")
    return (path / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("browser")) as page:
        yield page


def go(page: Page, address: str, place: str) -> None:
    """Open a view as from a link that was sent, and wait until it is drawn."""
    page.open("about:blank")
    page.open(address + place)
    page.until("document.getElementById('view').dataset.shown")


def follow(page: Page, selector: str) -> str:
    """Click what a selector finds; returns the address of the view that it leads to."""
    before = page.value("document.getElementById('view').dataset.shown")
    page.value(
        f"document.querySelector({selector!r}).dispatchEvent(new MouseEvent('click', "
        "{bubbles: true, cancelable: true}))"
    )
    page.until(f"document.getElementById('view').dataset.shown !== {before!r}")
    return page.value("document.getElementById('view').dataset.shown")


def text(page: Page, selector: str) -> str:
    node = f"document.querySelector({selector!r})"
    return page.value(f"{node}.innerText ?? {node}.textContent")


def test_from_the_heatmap_to_a_steered_image(browser: Page, address: str, explorer: Explorer):
    page = browser
    page.size(1280, 900)
    go(page, address, "")
    assert "worse than the mean" in text(page, "#bar")
    assert "not audited" in text(page, "#bar")
    assert follow(page, "[data-cell='1,3']") == "#/layer/1?target=3&tokens=cls"
    writes = page.value(
        "[...document.querySelectorAll('#rows td:nth-child(3)')]"
        ".map((cell) => parseFloat(cell.innerText))"
    )
    assert writes == sorted(writes, reverse=True)
    assert writes[0] > 0
    feature = follow(page, "#rows .address")
    assert feature.startswith("#/feature/1:")
    image = follow(page, "#view .shelf a.image")
    row = int(re.fullmatch(r"#/image/(\d+)", image)[1])
    gallery = explorer.gallery
    shown = gallery.feature_page(*map(int, feature.split("/")[-1].split(":")))
    assert row == shown.top[0].row
    names = ["<b>red", "</script> green", "blue"]
    assert text(page, "h1") == f"Image {row}: {names[gallery.labels[row]]}"
    graph_row = explorer.graphs.query[0]
    page.value(f"location.hash = '#/image/{graph_row}'")
    page.until(f"document.getElementById('view').dataset.shown === '#/image/{graph_row}'")
    assert follow(page, "a.button") == f"#/graph/{graph_row}"
    steer = follow(page, f"a[href='#/steer/{graph_row}']")
    assert steer.startswith(f"#/steer/{graph_row}")
    before = text(page, "[role=status]")
    page.value(
        "(() => { const s = document.getElementById('factor'); s.value = 2; "
        "s.dispatchEvent(new Event('input')); })()"
    )
    assert "A factor of 1 is the model itself." in text(page, "[role=status]") != before
    page.value("history.back()")
    page.until(f"document.getElementById('view').dataset.shown.startsWith('#/graph/{graph_row}')")
    assert page.errors == []
    assert all(name.startswith(("file:", "data:", "about:")) for name in page.requests)


def test_a_graph_is_pruned_pinned_and_grouped_and_its_address_keeps_all(
    browser: Page, address: str, explorer: Explorer
):
    page, row = browser, explorer.graphs.query[0]
    go(page, address, f"#/graph/{row}?share=100")
    n_nodes = len(explorer.graphs.graphs[0].nodes)
    count = "document.querySelectorAll('.graph .node').length"
    page.until(f"{count} === {n_nodes}")
    page.value(
        "(() => { const s = document.getElementById('share'); s.value = 0; "
        "s.dispatchEvent(new Event('input')); })()"
    )
    few = page.value(count)
    assert 1 < few < n_nodes
    features = explorer.graphs.graphs[0].nodes.query("kind == 'feature'").head(2)
    ids = [f"{r.layer}:{r.feature}@{r.token}" for r in features.itertuples()]
    go(page, address, f"#/graph/{row}?share=20&pin={','.join(ids)}")
    page.until("document.getElementById('group-name')")
    page.value("document.getElementById('group-name').value = 'round, part'")
    page.value("document.querySelector('#view form button').click()")
    kept = page.value("location.hash")
    assert "group=" in kept
    go(page, address, kept)
    page.until("document.querySelector('.node rect.fill-purple')")
    assert text(page, ".node .inside") == "round  part"
    page.value("document.querySelector('.node rect.fill-purple').parentNode.focus()")
    page.press("Enter")
    page.until("document.querySelector('.panel li')")
    assert page.value("document.querySelectorAll('.panel li').length") == 2
    assert page.errors == []


def test_saved_groups_are_where_a_graph_begins_and_are_saved_again(
    browser: Page, explorer: Explorer, tmp_path: Path
):
    study = explorer.graphs
    graph, row = study.graphs[0], study.query[0]
    ids = graph.node_ids()[1:4]
    grouped = graph.grouped({"saved, one": ids})
    folder = OutputFolder(tmp_path / "out", study_files(Explorer, png=False)).open()
    graphs = replace(study, graphs=[grouped, *study.graphs[1:]])
    write_study(folder, replace(explorer, graphs=graphs), "explore")
    page, address = browser, (tmp_path / "out" / "index.html").as_uri()
    go(page, address, f"#/graph/{row}")
    page.until("document.querySelector('.node rect.fill-purple')")
    assert text(page, ".node .inside") == "saved  one"
    link = page.value("decodeURIComponent(document.querySelector('a[download]').href)")
    place = tmp_path / "groups.json"
    place.write_text(link.partition(",")[2])
    assert read_groups(place) == {"saved  one": ids}
    page.value(
        "[...document.querySelectorAll('.chips button')]"
        ".find((button) => button.innerText.startsWith('saved')).click()"
    )
    page.until("!document.querySelector('.node rect.fill-purple')")
    kept = page.value("location.hash")
    assert "group=none" in kept
    go(page, address, kept)
    page.until("document.querySelector('.graph .node')")
    assert page.value("document.querySelectorAll('.node rect.fill-purple').length") == 0
    assert page.errors == []


def test_keys_lead_everywhere(browser: Page, address: str):
    page = browser
    go(page, address, "")
    page.value("document.querySelector('[data-cell=\"0,0\"]').focus()")
    page.press("ArrowDown")
    assert page.value("document.activeElement.dataset.cell") == "0,1"
    page.press("Enter")
    page.until("document.getElementById('view').dataset.view === 'layer'")
    page.press("ArrowRight")
    page.until("document.querySelector('h1').innerText === 'Features of layer 1'")
    page.press("u")
    page.until("document.getElementById('view').dataset.view === 'overview'")
    page.press("/")
    assert page.value("document.activeElement.id") == "goto"
    page.value("document.getElementById('goto').value = 'image 3'")
    page.press("Enter")
    page.until("document.querySelector('h1').innerText.startsWith('Image 3')")
    page.value("document.activeElement.blur()")
    page.press("?")
    assert page.value("document.getElementById('help').open")
    assert page.errors == []


def test_what_is_not_there_is_said(browser: Page, address: str):
    for place, expected in (
        ("#/feature/9:9", "Layer 9 is not shown here"),
        ("#/image/99", "there are images 0 to 19"),
        ("#/graph/x", "has no graph here"),
        ("#/nowhere", "no page “nowhere”"),
        ("#/toString", "no page “toString”"),
    ):
        go(browser, address, place)
        assert expected in text(browser, "[role=alert]")
    assert browser.errors == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_and_dark_pages_have_dark_charts(
    browser: Page, address: str, explorer: Explorer, width: int
):
    row = explorer.graphs.query[0]
    feature = "{}:{}".format(*explorer.gallery.pages.features[0])
    views = ["", "#/layer/0?target=2", f"#/feature/{feature}", f"#/image/{row}"]
    for dark in (True, False):
        browser.size(width, 844, dark=dark)
        for place in (*views, f"#/graph/{row}", f"#/steer/{row}"):
            go(browser, address, place)
            assert browser.value("document.documentElement.scrollWidth") <= width, place
            colours = browser.value(
                "[...document.querySelectorAll('body, svg, table.cards')]"
                ".map((e) => getComputedStyle(e).backgroundColor)"
            )
            for colour in colours:
                channels = [int(v) for v in re.findall(r"\d+", colour)[:3]]
                assert (max(channels) < 80) if dark else (min(channels) > 200), (place, colour)
    assert browser.errors == []


def test_in_a_notebook_the_pages_need_no_file(browser: Page, explorer: Explorer, tmp_path: Path):
    source = re.search(r'srcdoc="(.*?)"', explorer._repr_html_(), re.DOTALL)[1]
    whole = tmp_path / "cell.html"
    whole.write_text(f"<body>{explorer._repr_html_()}</body>")
    assert "</script> green" not in html.unescape(source).split("<script>", 1)[1]
    browser.size(1280, 900)
    browser.open("about:blank")
    browser.open(whole.as_uri())
    inside = "document.querySelector('iframe').contentDocument"
    browser.until(f"{inside}.querySelector('[data-cell]')")
    browser.value(f"{inside}.querySelector('[data-cell=\"0,0\"]').click()")
    browser.until(f"{inside}.querySelector('#rows .address')")
    browser.value(f"{inside}.querySelector('#rows .address').click()")
    browser.until(f"{inside}.querySelector('#view[data-view=feature] h1')")
    drawn = f"[...{inside}.querySelectorAll('canvas')].every((c) => c.dataset.drawn)"
    browser.until(drawn)
    assert browser.errors == []
